//! Ranges that the application has split, by mprotect, munmap or a mapping of its own: each part is revoked and given
//! back by itself, with the rights that it had, and what is not the region's is left alone.
//!
//! This is the slow way: the parts are read from /proc/self/maps, and the page tables are not kept.

use super::{Place, View};
use crate::sys::map::{self, Prot};
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;

/// A part of a view's range that still maps the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: AddrRange,
    pub(super) prot: Prot,
}

/// One line of /proc/self/maps (proc_pid_maps(5)).
struct Line<'a> {
    range: AddrRange,
    prot: Prot,
    offset: u64,
    /// Device and inode.
    file: (&'a str, &'a str),
}

fn parse(line: &str) -> Option<Line<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let rights = fields.next()?;
    let prot = match (rights.starts_with('r'), rights.get(1..2) == Some("w")) {
        (_, true) => Prot::ReadWrite,
        (true, false) => Prot::Read,
        (false, false) => Prot::None,
    };
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let file = (fields.next()?, fields.next()?);
    Some(Line { range: AddrRange::new(start, end - start), prot, offset, file })
}

impl View {
    /// The parts of a live range; `None`: it is whole.
    pub(super) fn parts(&self) -> Result<Option<Vec<Part>>, SysError> {
        if map::is_one_mapping(self.range) {
            return Ok(None);
        }
        let refused =
            |e: std::io::Error| SysError::new("open(/proc/self/maps)", Errno::from_raw(e.raw_os_error().unwrap_or(0)));
        crate::sys::may_fail("open(/proc/self/maps)")?;
        let text = std::fs::read_to_string("/proc/self/maps").map_err(refused)?;
        let lines: Vec<Line<'_>> = text.lines().filter_map(parse).collect();
        // The same file at the place where it belongs. The owner's view tells which file; without one (a device that is
        // dropped on revocation) whatever lies in place is taken for it.
        let file = lines.iter().find(|line| line.range.contains(self.sample)).map(|line| line.file);
        let ours = |line: &&Line<'_>| {
            let from = line.range.addr.max(self.range.addr);
            let in_place = (line.offset + (from - line.range.addr) as u64)
                .checked_sub(self.file_offset)
                .is_some_and(|at| at == (from - self.range.addr) as u64);
            from < line.range.end().min(self.range.end()) && in_place && file.unwrap_or(line.file) == line.file
        };
        let parts = lines.iter().filter(ours).map(|line| {
            let start = line.range.addr.max(self.range.addr);
            Part { range: AddrRange::new(start, line.range.end().min(self.range.end()) - start), prot: line.prot }
        });
        Ok(Some(parts.collect()))
    }

    /// The ranges of the parts, or the whole.
    pub(super) fn part_ranges(&self, place: &Place) -> Vec<AddrRange> {
        match &place.parts {
            Some(parts) => parts.iter().map(|part| part.range).collect(),
            None => vec![self.range],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_maps_is_understood() {
        let line = "7f00a000-7f00c000 r--s 00003000 00:01 4711   /memfd:a name (deleted)";
        let line = parse(line).unwrap();
        assert_eq!(line.range, AddrRange::new(0x7f00_a000, 0x2000));
        assert_eq!((line.prot, line.offset, line.file), (Prot::Read, 0x3000, ("00:01", "4711")));
        assert!(parse("nonsense").is_none());
    }
}
