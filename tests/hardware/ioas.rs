//! Devices by their own nodes, bound to an iommufd, and its I/O address spaces (include/uapi/linux/iommufd.h).

use crate::container::map_dma;
use crate::rig::{ioctl, sysfs};
use nix::errno::Errno;
use revocable_mmio::pci::DmaAccess;
use std::fs::OpenOptions;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// `_IO(';', n)` of vfio.h and iommufd.h, which no crate at hand has.
mod nr {
    pub(super) const DEVICE_BIND_IOMMUFD: u32 = 0x3b76;
    pub(super) const DEVICE_ATTACH_IOMMUFD_PT: u32 = 0x3b77;
    pub(super) const DEVICE_DETACH_IOMMUFD_PT: u32 = 0x3b78;
    pub(super) const DESTROY: u32 = 0x3b80;
    pub(super) const IOAS_ALLOC: u32 = 0x3b81;
    pub(super) const IOAS_IOVA_RANGES: u32 = 0x3b84;
    pub(super) const IOAS_MAP: u32 = 0x3b85;
    pub(super) const IOAS_UNMAP: u32 = 0x3b86;
    pub(super) const VFIO_IOAS: u32 = 0x3b88;
}

#[repr(C)]
struct Bind {
    argsz: u32,
    flags: u32,
    iommufd: i32,
    id: u32,
}

/// Of `VFIO_DEVICE_ATTACH_IOMMUFD_PT`; `VFIO_DEVICE_DETACH_IOMMUFD_PT` takes the first two.
#[repr(C)]
struct Attach {
    argsz: u32,
    flags: u32,
    page_table: u32,
}

#[repr(C)]
struct Alloc {
    size: u32,
    flags: u32,
    id: u32,
}

#[repr(C)]
struct Destroy {
    size: u32,
    id: u32,
}

#[repr(C)]
struct Map {
    size: u32,
    flags: u32,
    ioas: u32,
    reserved: u32,
    addr: u64,
    len: u64,
    iova: u64,
}

#[repr(C)]
struct Unmap {
    size: u32,
    ioas: u32,
    iova: u64,
    len: u64,
}

#[repr(C)]
struct Ranges {
    size: u32,
    ioas: u32,
    count: u32,
    reserved: u32,
    ranges: u64,
    alignment: u64,
}

#[repr(C)]
struct VfioIoas {
    size: u32,
    ioas: u32,
    op: u16,
    reserved: u16,
}

/// Hands a structure to the kernel, which may answer in it.
fn call<T>(fd: &impl AsRawFd, request: u32, argument: &mut T) -> Result<(), Errno> {
    ioctl(fd, request, (&raw mut *argument).expose_provenance()).map(drop)
}

/// Its devices and address spaces live as long as a descriptor of it, or a device that is bound to it.
#[derive(Clone)]
pub(crate) struct Iommufd(Arc<OwnedFd>);

impl Iommufd {
    pub(crate) fn open() -> Self {
        let iommufd = OpenOptions::new().read(true).write(true).open("/dev/iommu").expect("the kernel has iommufd");
        Self(Arc::new(iommufd.into()))
    }

    /// Opens a device and binds it: the descriptor, and the number that the iommufd gives it.
    pub(crate) fn try_bind(&self, device: &str) -> Result<(OwnedFd, u32), Errno> {
        let mut nodes = std::fs::read_dir(sysfs(device).join("vfio-dev")).expect("vfio-pci has it");
        let node = nodes.next().expect("a node").expect("sysfs").file_name();
        let path = Path::new("/dev/vfio/devices").join(node);
        let fd: OwnedFd = OpenOptions::new().read(true).write(true).open(path).expect("the device").into();
        let mut bind = Bind { argsz: 16, flags: 0, iommufd: self.0.as_raw_fd(), id: 0 };
        call(&fd, nr::DEVICE_BIND_IOMMUFD, &mut bind)?;
        Ok((fd, bind.id))
    }

    /// As `try_bind`, of a device whose former descriptor may still be closing.
    pub(crate) fn bind(&self, device: &str) -> (OwnedFd, u32) {
        let mut bound = self.try_bind(device);
        for _ in 0..200 {
            if !matches!(bound, Err(Errno::EINVAL | Errno::EBUSY)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            bound = self.try_bind(device);
        }
        bound.expect("it is bound")
    }

    /// A new I/O address space.
    pub(crate) fn ioas(&self) -> Ioas {
        let mut alloc = Alloc { size: 12, flags: 0, id: 0 };
        call(&*self.0, nr::IOAS_ALLOC, &mut alloc).expect("an address space");
        Ioas { iommufd: self.clone(), id: alloc.id }
    }
}

/// An I/O address space. `destroy` gives it back before the iommufd is closed.
#[derive(Clone)]
pub(crate) struct Ioas {
    iommufd: Iommufd,
    id: u32,
}

impl Ioas {
    /// Attaches a device, or moves it here from another address space.
    pub(crate) fn attach(&self, device: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut attach = Attach { argsz: 12, flags: 0, page_table: self.id };
        call(&device, nr::DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
    }

    pub(crate) fn map_at(&self, iova: u64, addr: usize, len: usize, access: DmaAccess) -> Result<(), Errno> {
        const FIXED_IOVA: u32 = 1;
        const WRITEABLE: u32 = 2;
        const READABLE: u32 = 4;
        let flags = FIXED_IOVA | READABLE | if access == DmaAccess::Read { 0 } else { WRITEABLE };
        let (addr, len) = (addr as u64, len as u64);
        let mut map = Map { size: 40, flags, ioas: self.id, reserved: 0, addr, len, iova };
        call(&*self.iommufd.0, nr::IOAS_MAP, &mut map)
    }

    /// How many bytes were unmapped; ENOENT for none.
    pub(crate) fn unmap_at(&self, iova: u64, len: usize) -> Result<u64, Errno> {
        let mut unmap = Unmap { size: 24, ioas: self.id, iova, len: len as u64 };
        call(&*self.iommufd.0, nr::IOAS_UNMAP, &mut unmap)?;
        Ok(unmap.len)
    }

    /// Without the addresses of interrupts, once a device is attached.
    pub(crate) fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        let mut found = [[0_u64; 2]; 64];
        let at = found.as_mut_ptr().expose_provenance() as u64;
        let mut ranges = Ranges { size: 32, ioas: self.id, count: 64, reserved: 0, ranges: at, alignment: 0 };
        call(&*self.iommufd.0, nr::IOAS_IOVA_RANGES, &mut ranges).expect("there is room for all");
        found[..ranges.count as usize].iter().map(|[first, last]| *first..=*last).collect()
    }

    /// `VFIO_IOMMU_MAP_DMA` of the iommufd, which stands for a container (`iommufd_vfio_map_dma`).
    pub(crate) fn map_as_container(&self, iova: u64, addr: usize, len: usize) -> Result<(), Errno> {
        const SET: u16 = 1;
        let mut set = VfioIoas { size: 12, ioas: self.id, op: SET, reserved: 0 };
        call(&*self.iommufd.0, nr::VFIO_IOAS, &mut set)?;
        map_dma(&*self.iommufd.0, iova, addr, len, DmaAccess::Read)
    }

    /// EBUSY while a device is attached.
    pub(crate) fn destroy(&self) -> Result<(), Errno> {
        let mut destroy = Destroy { size: 8, id: self.id };
        call(&*self.iommufd.0, nr::DESTROY, &mut destroy)
    }
}

/// Detaches a device from its address space: nothing reaches memory from it any more.
pub(crate) fn detach(device: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut detach = Attach { argsz: 8, flags: 0, page_table: 0 };
    call(&device, nr::DEVICE_DETACH_IOMMUFD_PT, &mut detach)
}
