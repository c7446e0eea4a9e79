//! The parts of the client's memory that it lets the device reach. This device does not: it keeps account of them, and
//! closes their descriptors.

use super::message::{Fields, Reply};
use nix::errno::Errno;
use std::collections::BTreeMap;

/// DMA_UNMAP flags: everything.
const ALL: u32 = 1 << 1;
/// DMA_MAP flags: the device may read, and write.
const RIGHTS: u32 = 0b11;

/// The address after the last of each range, by its first.
#[derive(Default)]
pub(crate) struct DmaTable(BTreeMap<u64, u64>);

impl DmaTable {
    /// The most ranges at a time. The client is told so.
    pub(crate) const MOST: usize = 1024;

    pub(crate) fn map(&mut self, mut fields: Fields<'_>) -> Result<Reply, Errno> {
        let (room, flags, _offset) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let (start, size) = (fields.u64()?, fields.u64()?);
        fields.end()?;
        let end = start.checked_add(size).filter(|end| *end > start && room >= 32 && flags & !RIGHTS == 0);
        let end = end.ok_or(Errno::EINVAL)?;
        if self.0.len() >= Self::MOST {
            return Err(Errno::ENOSPC);
        }
        if self.0.range(..end).next_back().is_some_and(|(_, before)| *before > start) {
            return Err(Errno::EEXIST);
        }
        self.0.insert(start, end);
        Ok(Reply::default())
    }

    /// Forgets the ranges inside of the one given. One that is only partly inside is an error.
    pub(crate) fn unmap(&mut self, mut fields: Fields<'_>) -> Result<Reply, Errno> {
        let payload = fields.0.to_vec();
        let (room, flags, start, size) = (fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?);
        fields.end()?;
        if room < 24 || flags & !ALL != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & ALL != 0 {
            self.0.clear();
            return Ok(Reply { payload, fd: None });
        }
        let end = start.checked_add(size).filter(|end| *end > start).ok_or(Errno::EINVAL)?;
        let inside = |(from, to): (&u64, &u64)| *from >= start && *to <= end;
        let mut touched = self.0.iter().filter(|(from, to)| **from < end && **to > start).peekable();
        if touched.peek().is_none() || !touched.all(inside) {
            return Err(Errno::EINVAL);
        }
        self.0.retain(|from, to| !inside((from, to)));
        Ok(Reply { payload, fd: None })
    }
}
