//! The machine's devices, bound to vfio-pci and opened by a group and a type1 container, or by an iommufd.
//!
//! UNSAFETY: ioctls of vfio and iommufd, each with the argument that include/uapi/linux/{vfio,iommufd}.h give it.
#![expect(unsafe_code, reason = "ioctls have no safe form")]

use crate::container::{Container, Group};
use crate::ioas::{Ioas, Iommufd};
use crate::support;
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::pci::{DmaAccess, Iommu};
use revocable_mmio::vfio::{VfioBar, VfioDevice};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    interface: Interface,
    _turn: MutexGuard<'static, ()>,
}

/// How the process gets devices and maps memory for them. `tools/vm/hardware` says which.
enum Interface {
    Type1(Container),
    /// What is opened is attached to this I/O address space.
    Iommufd(Iommufd, Ioas),
}

/// A device, and what it was got from.
pub(crate) struct Opened {
    pub(crate) device: VfioDevice,
    pub(crate) by: By,
}

pub(crate) enum By {
    Group(Group),
    /// The number that the iommufd gives it.
    Iommufd(u32),
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

    /// What a reset of the bus is to be called with: the group of every function, or nothing with an iommufd, which knows
    /// what it owns.
    pub(crate) fn groups(&self) -> Vec<BorrowedFd<'_>> {
        match &self.by {
            By::Group(group) => vec![group.as_fd()],
            By::Iommufd(_) => Vec::new(),
        }
    }

    /// What the kernel refuses instead (EINVAL, `vfio_pci_ioctl_pci_hot_reset`): a list without them, or any with an iommufd.
    pub(crate) fn wrong_groups(&self) -> Vec<BorrowedFd<'_>> {
        match &self.by {
            By::Group(_) => Vec::new(),
            By::Iommufd(_) => vec![self.device.as_fd()],
        }
    }
}

/// The machine's devices, or `None` where there are none.
pub(crate) fn rig() -> Option<Rig> {
    static TURN: Mutex<()> = Mutex::new(());
    support::start();
    let Some(interface) = std::env::var_os("REVOCABLE_HARDWARE") else {
        support::skip("no machine with devices for vfio-pci: see tools/vm/hardware", false);
        return None;
    };
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let interface = match interface.to_str() {
        Some("iommufd") => {
            let iommufd = Iommufd::open();
            let ioas = iommufd.ioas();
            Interface::Iommufd(iommufd, ioas)
        }
        Some("type1") => Interface::Type1(Container::open()),
        other => panic!("REVOCABLE_HARDWARE={other:?} is neither type1 nor iommufd"),
    };
    Some(Rig { interface, _turn: turn })
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

/// An ioctl whose argument is a number, or the exposed address of a structure.
pub(crate) fn ioctl(fd: &impl AsRawFd, request: u32, argument: usize) -> Result<i32, Errno> {
    // SAFETY: by this module's UNSAFETY: the callers pass what the request takes.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request.into(), argument) })
}

impl Rig {
    pub(crate) fn open(&self, device: &str) -> Opened {
        bind(device);
        match &self.interface {
            Interface::Type1(container) => of_group(container.group(device), device),
            Interface::Iommufd(iommufd, ioas) => {
                let (fd, id) = iommufd.bind(device);
                ioas.attach(fd.as_fd()).expect("it is attached");
                Opened { device: VfioDevice::new(fd).expect("a PCI device"), by: By::Iommufd(id) }
            }
        }
    }

    /// A further device of a group, by its file; the same as any other with an iommufd.
    pub(crate) fn open_beside(&self, first: &Opened, device: &str) -> Opened {
        bind(device);
        match &first.by {
            By::Group(group) => of_group(group.clone(), device),
            By::Iommufd(_) => self.open(device),
        }
    }

    /// Where the devices that were opened find memory.
    pub(crate) fn iommu(&self) -> HostIommu {
        match &self.interface {
            Interface::Type1(container) => HostIommu::Type1(container.clone()),
            Interface::Iommufd(_, ioas) => HostIommu::Ioas(ioas.clone()),
        }
    }

    /// The iommufd, and the address space that devices are attached to; `None`, and a line that says so, without one.
    pub(crate) fn iommufd(&self) -> Option<(&Iommufd, &Ioas)> {
        match &self.interface {
            Interface::Type1(_) => {
                support::skip("devices of a container: tools/vm/hardware 6.12-iommufd has them by iommufd", false);
                None
            }
            Interface::Iommufd(iommufd, ioas) => Some((iommufd, ioas)),
        }
    }

    /// True if a BAR can be mapped for DMA by its address. `pin_user_pages` refuses device memory, which is what iommufd
    /// calls (`pfn_reader_user_pin`); type1 looks up the page-table entries (`follow_fault_pfn`).
    pub(crate) fn maps_bars(&self) -> bool {
        matches!(self.interface, Interface::Type1(_))
    }
}

fn of_group(group: Group, device: &str) -> Opened {
    let device = VfioDevice::new(group.descriptor(device)).expect("a PCI device");
    Opened { device, by: By::Group(group) }
}

/// The kernel's, by either interface.
pub(crate) enum HostIommu {
    Type1(Container),
    Ioas(Ioas),
}

impl HostIommu {
    pub(crate) fn map_at(&self, iova: u64, addr: usize, len: usize, access: DmaAccess) -> Result<(), Errno> {
        match self {
            HostIommu::Type1(container) => container.map_at(iova, addr, len, access),
            HostIommu::Ioas(ioas) => ioas.map_at(iova, addr, len, access),
        }
    }

    /// How many bytes were unmapped. An iommufd says ENOENT for none (`iommufd_ioas_unmap`).
    pub(crate) fn unmap_at(&self, iova: u64, len: usize) -> Result<u64, Errno> {
        match self {
            HostIommu::Type1(container) => container.unmap_at(iova, len),
            HostIommu::Ioas(ioas) => ioas.unmap_at(iova, len),
        }
    }

    /// What `unmap_at` returns where nothing is mapped.
    pub(crate) fn nothing(&self) -> Result<u64, Errno> {
        match self {
            HostIommu::Type1(_) => Ok(0),
            HostIommu::Ioas(_) => Err(Errno::ENOENT),
        }
    }
}

impl Iommu for HostIommu {
    fn map(&self, iova: u64, addr: *mut u8, len: usize, access: DmaAccess) -> std::io::Result<()> {
        Ok(self.map_at(iova, addr.expose_provenance(), len, access)?)
    }

    fn unmap(&self, iova: u64, len: usize) {
        let unmapped = self.unmap_at(iova, len).expect("it can be unmapped in any state");
        assert_eq!(unmapped, len as u64);
    }

    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        match self {
            HostIommu::Type1(_) => vec![0..=u64::MAX],
            HostIommu::Ioas(ioas) => ioas.ranges(),
        }
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
    // A group gives files without a name; an iommufd's have the name of the device's node.
    let device = |to: &str| to.contains("vfio-device") || to.contains("/vfio/devices/");
    links.filter(|link| link.path().read_link().is_ok_and(|to| device(&to.to_string_lossy()))).count()
}
