//! The client's eventfds for interrupts. This device raises none: it keeps the descriptors, and never reads or writes what
//! may be something else than an eventfd.

use super::message::{Fields, Reply};
use nix::errno::Errno;
use std::os::fd::OwnedFd;

/// INTx, MSI, MSI-X, error and request.
pub(crate) const IRQ_INDICES: u32 = 5;
const INTX: u32 = 0;

/// GET_IRQ_INFO flags: signalled through an eventfd, can be masked, masked by being signalled.
const INTX_FLAGS: u32 = 0b111;

/// SET_IRQS flags: what the data is (nothing, an eventfd) and what is to be done (mask, unmask, trigger).
const NONE: u32 = 1;
const EVENTFD: u32 = 1 << 2;
const MASK: u32 = NONE | 1 << 3;
const UNMASK: u32 = NONE | 1 << 4;
/// The interrupt is triggered by an eventfd from now on, or by none.
const ARM: u32 = EVENTFD | 1 << 5;
const DISARM: u32 = NONE | 1 << 5;

#[derive(Default)]
pub(crate) struct Irqs {
    intx: Option<OwnedFd>,
}

impl Irqs {
    pub(crate) fn info(&self, mut fields: Fields<'_>) -> Result<Reply, Errno> {
        let (room, _flags, index, _count) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        fields.end()?;
        if room < 16 || index >= IRQ_INDICES {
            return Err(Errno::EINVAL);
        }
        let (flags, count) = if index == INTX { (INTX_FLAGS, 1) } else { (0, 0) };
        let payload = [16, flags, index, count].map(u32::to_ne_bytes).as_flattened().to_vec();
        Ok(Reply { payload, fd: None })
    }

    pub(crate) fn set(&mut self, mut fields: Fields<'_>, mut fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
        let (room, flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (start, count) = (fields.u32()?, fields.u32()?);
        if room < 20 || index >= IRQ_INDICES || start != 0 || count > u32::from(index == INTX) {
            return Err(Errno::EINVAL);
        }
        match (flags, count) {
            (DISARM, 0) if index == INTX => self.intx = None,
            (DISARM, 0) | (MASK | UNMASK, 1) => {}
            (ARM, 1) if fds.len() <= 1 => self.intx = fds.pop(),
            _ => return Err(Errno::EINVAL),
        }
        Ok(Reply::default())
    }
}
