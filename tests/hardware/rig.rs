//! The machine's devices, bound to vfio-pci and opened by the ioctls of a group and a type1 container.
//!
//! UNSAFETY: ioctls of vfio, each with the argument that include/uapi/linux/vfio.h gives it.
#![expect(unsafe_code, reason = "ioctls have no safe form")]

use crate::support;
use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::pci::{DmaAccess, Iommu};
use revocable_mmio::vfio::{VfioBar, VfioDevice};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// 16 MiB of plain memory (BAR 2), and 256 bytes of registers (BAR 0).
pub(crate) const MEMORY: &str = "0000:00:10.0";
/// A device with DMA.
pub(crate) const EDU: &str = "0000:00:11.0";
/// Power management, MSI-X (BAR 3), I/O ports (BAR 2).
pub(crate) const NIC: &str = "0000:00:12.0";
/// Function-level reset.
pub(crate) const NVME: &str = "0000:00:13.0";
/// Two functions of one group, behind a port: plain memory of 1 MiB each (BAR 2).
pub(crate) const FUNCTIONS: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];
/// The index of the memory's BAR, and its length.
pub(crate) const BAR: u32 = 2;
pub(crate) const LEN: usize = 16 << 20;

pub(crate) fn sysfs(device: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(device)
}

/// The devices, for one test at a time.
pub(crate) struct Rig {
    container: Arc<OwnedFd>,
    _turn: MutexGuard<'static, ()>,
}

/// A device, and the group that it was got from.
pub(crate) struct Opened {
    pub(crate) device: VfioDevice,
    pub(crate) group: Arc<OwnedFd>,
}

impl Opened {
    /// Its plain memory, as regions that ask the device.
    pub(crate) fn bar(&self, index: u32) -> VfioBar {
        let builder = self.device.bar(index).expect("it has this BAR");
        builder.build(self.device.as_fd()).expect("it can be mapped")
    }

    pub(crate) fn command(&self) -> u16 {
        let mut bytes = [0; 2];
        self.device.read_config(4, &mut bytes).expect("configuration space");
        u16::from_le_bytes(bytes)
    }

    /// Sets or clears PCI_COMMAND's memory bit.
    pub(crate) fn turn(&self, on: bool) {
        let command = self.command() & !2 | if on { 2 } else { 0 };
        self.device.write_config(4, &command.to_le_bytes()).expect("configuration space");
    }
}

/// The machine's devices, or `None` where there are none.
pub(crate) fn rig() -> Option<Rig> {
    static TURN: Mutex<()> = Mutex::new(());
    support::start();
    if std::env::var_os("REVOCABLE_HARDWARE").is_none() {
        support::skip("no machine with devices for vfio-pci: see tools/vm/hardware", false);
        return None;
    }
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let container = OpenOptions::new().read(true).write(true).open("/dev/vfio/vfio").expect("the machine has vfio");
    Some(Rig { container: Arc::new(container.into()), _turn: turn })
}

pub(crate) fn write(path: impl AsRef<Path>, text: &str) -> std::io::Result<()> {
    std::fs::write(path, text)
}

pub(crate) fn bind(device: &str) {
    let path = sysfs(device);
    if path.join("driver").read_link().is_ok_and(|driver| driver.ends_with("vfio-pci")) {
        return;
    }
    write(path.join("driver_override"), "vfio-pci").expect("sysfs");
    write("/sys/bus/pci/drivers_probe", device).expect("it binds");
}

fn ioctl(fd: &impl AsRawFd, request: u32, argument: usize) -> Result<i32, Errno> {
    // SAFETY: by this module's UNSAFETY: the callers pass what the request takes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request.into(), argument) })
}

impl Rig {
    /// The group of a device. A group that is open already cannot be opened again.
    pub(crate) fn group(&self, device: &str) -> Arc<OwnedFd> {
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
        let container = self.container.as_raw_fd();
        ioctl(&group, nr::VFIO_GROUP_SET_CONTAINER, (&raw const container).expose_provenance())
            .expect("it joins the container");
        // For the container's first group. With others in it there is an IOMMU already, and this is EINVAL.
        const TYPE1V2: usize = 3;
        let _ = ioctl(&*self.container, nr::VFIO_SET_IOMMU, TYPE1V2);
        Arc::new(group)
    }

    pub(crate) fn open(&self, device: &str) -> Opened {
        bind(device);
        let group = self.group(device);
        self.open_in(&group, device)
    }

    /// A further device of a group.
    pub(crate) fn open_in(&self, group: &Arc<OwnedFd>, device: &str) -> Opened {
        let fd = descriptor(group, device);
        Opened { device: VfioDevice::new(fd).expect("a PCI device"), group: Arc::clone(group) }
    }

    pub(crate) fn iommu(&self) -> Type1 {
        Type1(Arc::clone(&self.container))
    }
}

pub(crate) fn descriptor(group: &OwnedFd, device: &str) -> OwnedFd {
    let name = CString::new(device).expect("no NUL");
    let fd = ioctl(group, nr::VFIO_GROUP_GET_DEVICE_FD, name.as_ptr().expose_provenance()).expect("the device");
    // SAFETY: a descriptor that the kernel has just given to this call alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The IOMMU of the container.
pub(crate) struct Type1(Arc<OwnedFd>);

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

impl Type1 {
    pub(crate) fn map_at(&self, iova: u64, addr: usize, len: usize, access: DmaAccess) -> Result<(), Errno> {
        let flags = if access == DmaAccess::Read { 1 } else { 3 };
        let argument = DmaMap { argsz: 32, flags, vaddr: addr as u64, iova, size: len as u64 };
        ioctl(&*self.0, nr::VFIO_IOMMU_MAP_DMA, (&raw const argument).expose_provenance()).map(drop)
    }

    /// How many bytes were unmapped.
    pub(crate) fn unmap_at(&self, iova: u64, len: usize) -> Result<u64, Errno> {
        let mut argument = DmaUnmap { argsz: 24, flags: 0, iova, size: len as u64 };
        ioctl(&*self.0, nr::VFIO_IOMMU_UNMAP_DMA, (&raw mut argument).expose_provenance())?;
        Ok(argument.size)
    }
}

impl Iommu for Type1 {
    fn map(&self, iova: u64, addr: *mut u8, len: usize, access: DmaAccess) -> std::io::Result<()> {
        Ok(self.map_at(iova, addr.expose_provenance(), len, access)?)
    }

    fn unmap(&self, iova: u64, len: usize) {
        let unmapped = self.unmap_at(iova, len).expect("it can be unmapped in any state");
        assert_eq!(unmapped, len as u64);
    }
}

/// Minor faults of the calling thread so far.
pub(crate) fn faults() -> i64 {
    // SAFETY: all zeroes is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a valid structure to fill.
    let rc = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    assert_eq!(rc, 0, "getrusage");
    usage.ru_minflt
}

/// Descriptors of the process that are this device's.
pub(crate) fn device_descriptors() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").expect("there is /proc").flatten();
    links.filter(|link| link.path().read_link().is_ok_and(|to| to.to_string_lossy().contains("vfio-device"))).count()
}

pub(crate) fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("there is /proc");
    let mut parts = text.split(['.', '-']).map_while(|part| part.parse().ok());
    (parts.next().expect("a number"), parts.next().expect("a number"))
}
