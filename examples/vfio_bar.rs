//! A BAR of a real device, as a VMM maps it: whoever turns the memory off, the kernel or the VMM, an access is an error and
//! not the end of the process.
//!
//! Needs a device that is bound to vfio-pci, with an IOMMU, and the right to open its group:
//!
//! ```text
//! echo vfio-pci > /sys/bus/pci/devices/0000:03:00.0/driver_override
//! echo 0000:03:00.0 > /sys/bus/pci/drivers_probe
//! cargo run --features vfio --example vfio_bar 0000:03:00.0 2
//! ```
//!
//! `tools/vm/hardware` makes a machine with such devices.
#![expect(
    unsafe_code,
    reason = "opening a device of vfio: three ioctls; a VMM has vfio-ioctls or iommufd-ioctls for it"
)]

use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::vfio::VfioDevice;
use revocable_mmio::{AccessError, MapOptions};
use std::error::Error;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// The container, the group and the device, by the kernel's type1 interface, which every kernel with vfio has. All three are
/// kept as long as the device. A device that is bound to an iommufd is for [`VfioDevice::new`] as well.
fn open(address: &str) -> Result<(File, File, VfioDevice), Box<dyn Error>> {
    const TYPE1V2: usize = 3;
    let rw = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let device = Path::new("/sys/bus/pci/devices").join(address);
    let driver = device.join("driver").read_link().map_err(|e| format!("{address} has no driver: {e}"))?;
    if !driver.ends_with("vfio-pci") {
        return Err(format!("{address} is bound to {}, not to vfio-pci", driver.display()).into());
    }
    let group = device.join("iommu_group").read_link().map_err(|e| format!("{address} has no IOMMU: {e}"))?;
    let group = group.file_name().ok_or("a group has a number")?.to_owned();
    let container = rw(Path::new("/dev/vfio/vfio"))?;
    let group = rw(&Path::new("/dev/vfio").join(group))?;
    let ioctl = |file: &File, request: u32, argument: usize| {
        // SAFETY: each request below gets the argument that include/uapi/linux/vfio.h gives it.
        Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), request.into(), argument) })
    };
    let number = container.as_raw_fd();
    ioctl(&group, nr::VFIO_GROUP_SET_CONTAINER, (&raw const number).expose_provenance())?;
    ioctl(&container, nr::VFIO_SET_IOMMU, TYPE1V2)?;
    let name = CString::new(address)?;
    let fd = ioctl(&group, nr::VFIO_GROUP_GET_DEVICE_FD, name.as_ptr().expose_provenance())?;
    // SAFETY: a descriptor that the kernel has just given to this call alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((container, group, VfioDevice::new(fd)?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        println!("usage: vfio_bar ADDRESS [BAR]");
        println!("It needs a PCI device that is bound to vfio-pci, behind an IOMMU; ADDRESS is like 0000:03:00.0.");
        return Ok(());
    };
    run(&address, arguments.next().map_or(Ok(0), |index| index.parse())?)
}

pub(crate) fn run(address: &str, index: u32) -> Result<(), Box<dyn Error>> {
    let (_container, _group, device) = open(address)?;
    let set_memory = |on: bool| -> Result<(), Box<dyn Error>> {
        let mut command = [0; 2];
        device.read_config(4, &mut command)?;
        let command = u16::from_le_bytes(command) & !2 | if on { 2 } else { 0 };
        Ok(device.write_config(4, &command.to_le_bytes())?)
    };
    set_memory(true)?;

    let bar = device.bar(index)?.build(device.as_fd())?;
    for area in bar.areas() {
        println!("BAR {index}, {:#x?}: {:?}", area.range(), area.region());
    }
    let region = bar.areas().first().ok_or("a BAR that can be mapped has an area")?.region();
    let mapping = region.map(MapOptions::new())?;
    println!("its first word: {:#010x}", mapping.read::<u32>(0)?);

    set_memory(false)?; // the guest clears PCI_COMMAND.MEM, and the kernel revokes
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }));
    println!("the device is off: {}", AccessError::Disabled { offset: 0 });

    bar.group().disable()?; // the VMM revokes too, with what follows it: DMA mappings, memslots, pins
    set_memory(true)?;
    assert_eq!(mapping.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }));
    bar.group().enable()?;
    println!("on and enabled again: {:#010x}", mapping.read::<u32>(0)?);

    if device.can_be_reset()? {
        bar.group().reset(|_| device.reset())??; // accesses wait meanwhile, and none is refused
        println!("after a reset: {:#010x}", mapping.read::<u32>(0)?);
    }

    // The same, driven by a guest's writes to configuration space.
    drop(mapping);
    drop(bar);
    let model = device.pci()?.build()?;
    println!("as a PCI device: {model:?}");
    Ok(())
}
