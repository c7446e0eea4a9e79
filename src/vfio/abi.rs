//! The ioctls of a vfio device, as include/uapi/linux/vfio.h has them.
//!
//! UNSAFETY: each call passes a structure whose first field is its own length, and the kernel reads and writes no more than
//! that.
#![expect(unsafe_code, reason = "ioctls have no safe form")]

use crate::sys::{SysError, may_fail};
use linux_raw_sys::ioctl as nr;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Words of a reply whose length only the kernel knows: more than any driver in the kernel sends.
const MOST_WORDS: usize = 1 << 14;

/// What the kernel answers to a question that begins with `argsz` and the words of `question`: as many bytes as it has.
///
/// The reply is a copy, and nothing in it is trusted.
fn ask(device: BorrowedFd<'_>, request: u32, name: &'static str, question: &[u32]) -> Result<Vec<u8>, SysError> {
    let mut words = vec![0_u32; 16.max(question.len() + 1)];
    loop {
        let argsz = u32::try_from(words.len() * size_of::<u32>()).map_err(|_| SysError::new(name, Errno::E2BIG))?;
        words[0] = argsz;
        words[1..=question.len()].copy_from_slice(question);
        may_fail(name)?;
        // SAFETY: the kernel writes at most `argsz` bytes, the length of the buffer, which is local and exclusive.
        let rc = unsafe { libc::ioctl(device.as_raw_fd(), request.into(), words.as_mut_ptr()) };
        let failed = (rc < 0).then(|| SysError::last(name));
        // Too short: the kernel says how much it has (by `argsz`, or ENOSPC and a count).
        let needed = usize::try_from(words[0]).unwrap_or(usize::MAX).div_ceil(size_of::<u32>());
        match failed {
            None if needed <= words.len() => return Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect()),
            None if needed <= MOST_WORDS => words.resize(needed, 0),
            Some(e) if e.errno == Errno::ENOSPC && words.len() < MOST_WORDS => words.resize(words.len() * 4, 0),
            None => return Err(SysError::new(name, Errno::E2BIG)),
            Some(e) => return Err(e),
        }
    }
}

/// `VFIO_DEVICE_GET_INFO`: struct vfio_device_info.
pub(super) fn device_info(device: BorrowedFd<'_>) -> Result<Vec<u8>, SysError> {
    ask(device, nr::VFIO_DEVICE_GET_INFO, "VFIO_DEVICE_GET_INFO", &[])
}

/// `VFIO_DEVICE_GET_REGION_INFO`: struct vfio_region_info with its capabilities.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> Result<Vec<u8>, SysError> {
    ask(device, nr::VFIO_DEVICE_GET_REGION_INFO, "VFIO_DEVICE_GET_REGION_INFO", &[0, index])
}

/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`: the functions that a reset of the bus reaches.
pub(super) fn hot_reset_info(device: BorrowedFd<'_>) -> Result<Vec<u8>, SysError> {
    ask(device, nr::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", &[0, 0])
}

/// `VFIO_DEVICE_RESET`.
pub(super) fn reset(device: BorrowedFd<'_>) -> Result<(), SysError> {
    const NAME: &str = "VFIO_DEVICE_RESET";
    may_fail(NAME)?;
    // SAFETY: the call has no argument.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), nr::VFIO_DEVICE_RESET.into()) };
    if rc < 0 { Err(SysError::last(NAME)) } else { Ok(()) }
}

/// `VFIO_DEVICE_PCI_HOT_RESET`: struct vfio_pci_hot_reset.
pub(super) fn hot_reset(device: BorrowedFd<'_>, groups: &[BorrowedFd<'_>]) -> Result<(), SysError> {
    const NAME: &str = "VFIO_DEVICE_PCI_HOT_RESET";
    let too_many = |_| SysError::new(NAME, Errno::E2BIG);
    let count = i32::try_from(groups.len()).map_err(too_many)?;
    let argsz = i32::try_from((3 + groups.len()) * size_of::<i32>()).map_err(too_many)?;
    let mut words = vec![argsz, 0, count];
    words.extend(groups.iter().map(AsRawFd::as_raw_fd));
    may_fail(NAME)?;
    // SAFETY: the kernel reads `argsz` bytes, the length of the buffer.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), nr::VFIO_DEVICE_PCI_HOT_RESET.into(), words.as_ptr()) };
    if rc < 0 { Err(SysError::last(NAME)) } else { Ok(()) }
}

/// Enters or leaves runtime low power (`VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY`, `_EXIT`; Linux 6.1).
pub(super) fn low_power(device: BorrowedFd<'_>, enter: bool) -> Result<(), SysError> {
    const NAME: &str = "VFIO_DEVICE_FEATURE(LOW_POWER)";
    const SET: u32 = 1 << 17;
    const ENTRY: u32 = 3;
    const EXIT: u32 = 5;
    // struct vfio_device_feature without data.
    let words = [8, SET | if enter { ENTRY } else { EXIT }];
    may_fail(NAME)?;
    // SAFETY: the kernel reads 8 bytes, the length of the buffer.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), nr::VFIO_DEVICE_FEATURE.into(), words.as_ptr()) };
    if rc < 0 { Err(SysError::last(NAME)) } else { Ok(()) }
}
