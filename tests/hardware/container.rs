//! Devices by their group, and a type1 container as the IOMMU.
//!
//! UNSAFETY: a descriptor that the kernel has given.
#![expect(unsafe_code, reason = "an ioctl returns a descriptor")]

use crate::rig::{ioctl, sysfs};
use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::pci::DmaAccess;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
pub(crate) struct Container(Arc<OwnedFd>);

/// The file of an IOMMU group.
#[derive(Clone)]
pub(crate) struct Group(Arc<OwnedFd>);

impl Group {
    /// A new descriptor of one of its devices.
    pub(crate) fn descriptor(&self, device: &str) -> OwnedFd {
        let name = CString::new(device).expect("no NUL");
        let fd = ioctl(&*self.0, nr::VFIO_GROUP_GET_DEVICE_FD, name.as_ptr().expose_provenance()).expect("the device");
        // SAFETY: a descriptor that the kernel has just given to this call alone.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

#[repr(C)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

impl Container {
    pub(crate) fn open() -> Self {
        let container = OpenOptions::new().read(true).write(true).open("/dev/vfio/vfio").expect("the machine has vfio");
        Self(Arc::new(container.into()))
    }

    /// The group of a device. A group that is open already cannot be opened again.
    pub(crate) fn group(&self, device: &str) -> Group {
        let link = sysfs(device).join("iommu_group").read_link().expect("it has a group");
        let number = link.file_name().expect("a number").to_owned();
        let path = Path::new("/dev/vfio").join(number);
        // The one before may still be closing.
        let mut group = OpenOptions::new().read(true).write(true).open(&path);
        for _ in 0..200 {
            if !matches!(&group, Err(e) if e.raw_os_error() == Some(libc::EBUSY)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            group = OpenOptions::new().read(true).write(true).open(&path);
        }
        let group: OwnedFd = group.expect("the group").into();
        let container = self.0.as_raw_fd();
        ioctl(&group, nr::VFIO_GROUP_SET_CONTAINER, (&raw const container).expose_provenance())
            .expect("it joins the container");
        // For the container's first group. With others in it there is an IOMMU already, and this is EINVAL.
        const TYPE1V2: usize = 3;
        let _ = ioctl(&*self.0, nr::VFIO_SET_IOMMU, TYPE1V2);
        Group(Arc::new(group))
    }

    pub(crate) fn map_at(&self, iova: u64, addr: usize, len: usize, access: DmaAccess) -> Result<(), Errno> {
        map_dma(&*self.0, iova, addr, len, access)
    }

    /// How many bytes were unmapped.
    pub(crate) fn unmap_at(&self, iova: u64, len: usize) -> Result<u64, Errno> {
        let mut argument = DmaUnmap { argsz: 24, flags: 0, iova, size: len as u64 };
        ioctl(&*self.0, nr::VFIO_IOMMU_UNMAP_DMA, (&raw mut argument).expose_provenance())?;
        Ok(argument.size)
    }
}

/// `VFIO_IOMMU_MAP_DMA`, of a container or of an iommufd, which knows it too.
pub(crate) fn map_dma(fd: &impl AsRawFd, iova: u64, addr: usize, len: usize, access: DmaAccess) -> Result<(), Errno> {
    let flags = if access == DmaAccess::Read { 1 } else { 3 };
    let argument = DmaMap { argsz: 32, flags, vaddr: addr as u64, iova, size: len as u64 };
    ioctl(fd, nr::VFIO_IOMMU_MAP_DMA, (&raw const argument).expose_provenance()).map(drop)
}
