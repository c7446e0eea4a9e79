//! The configuration space of a PCI device, as the kernel shows it.

use super::error::VfioError;
use super::info::RegionInfo;
use crate::sys::SysError;
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use std::os::fd::BorrowedFd;

/// `VFIO_PCI_CONFIG_REGION_INDEX`.
const CONFIG_REGION: u32 = 7;

pub(super) const COMMAND: u64 = 4;
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
const STATUS: u64 = 6;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES: u64 = 0x34;
/// The end of a conventional device's configuration space.
pub(super) const CONVENTIONAL: u64 = 256;
const HEADER: u64 = 0x40;

pub(super) const CAP_POWER: u8 = 1;
/// The control register of power management, from the capability on.
pub(super) const PM_CTRL: u64 = 4;
pub(super) const PM_STATE: u16 = 3;
pub(super) const D3HOT: u16 = 3;

/// Where the configuration space is in the device's file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    offset: u64,
    pub(super) size: u64,
}

impl Config {
    pub(super) fn of(device: BorrowedFd<'_>) -> Result<Self, VfioError> {
        let info = RegionInfo::ask(device, CONFIG_REGION)?;
        if info.size() < CONVENTIONAL {
            return Err(VfioError::NotPci { size: info.size() });
        }
        Ok(Self { offset: info.offset(), size: info.size() })
    }

    /// Where `len` bytes at `at` are in the device's file.
    fn place(&self, at: u64, len: usize, call: &'static str) -> Result<i64, SysError> {
        let inside = at.checked_add(len as u64).is_some_and(|end| end <= self.size);
        let place = self.offset.checked_add(at).and_then(|place| i64::try_from(place).ok());
        place.filter(|_| inside).ok_or(SysError::new(call, Errno::EFAULT))
    }

    pub(super) fn read(&self, device: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<(), SysError> {
        let place = self.place(at, into.len(), "pread")?;
        match pread(device, into, place) {
            Ok(read) if read == into.len() => Ok(()),
            Ok(_) => Err(SysError::new("pread", Errno::EIO)),
            Err(e) => Err(SysError::new("pread", e)),
        }
    }

    pub(super) fn write(&self, device: BorrowedFd<'_>, at: u64, bytes: &[u8]) -> Result<(), SysError> {
        let place = self.place(at, bytes.len(), "pwrite")?;
        match pwrite(device, bytes, place) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(SysError::new("pwrite", Errno::EIO)),
            Err(e) => Err(SysError::new("pwrite", e)),
        }
    }

    pub(super) fn u16(&self, device: BorrowedFd<'_>, at: u64) -> Result<u16, SysError> {
        let mut bytes = [0; 2];
        self.read(device, at, &mut bytes).map(|()| u16::from_le_bytes(bytes))
    }

    /// Where the first capability with this id is. A list that goes in a circle ends.
    pub(super) fn capability(&self, device: BorrowedFd<'_>, id: u8) -> Result<Option<u64>, SysError> {
        /// As many as fit, 4 bytes each.
        const MOST: u64 = (CONVENTIONAL - HEADER) / 4;
        if self.u16(device, STATUS)? & STATUS_CAPABILITIES == 0 {
            return Ok(None);
        }
        let mut at = u64::from(self.u16(device, CAPABILITIES)? & 0xfc);
        for _ in 0..MOST {
            if at < HEADER {
                break;
            }
            let [found, next] = self.u16(device, at)?.to_le_bytes();
            if found == id {
                return Ok(Some(at));
            }
            at = u64::from(next & 0xfc);
        }
        Ok(None)
    }
}
