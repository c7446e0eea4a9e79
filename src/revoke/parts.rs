//! Ranges that the application has split, by mprotect, munmap or a mapping of its own: each part is revoked and given
//! back by itself, with the rights that it had, and what is not the region's is left alone.
//!
//! This is the slow way: the parts are read from /proc/self/maps, and the page tables are not kept.

use super::{Place, View};
use crate::sys::map::{self, Prot};
use crate::sys::maps::{self, Line};
use crate::sys::{AddrRange, SysError};

/// A part of a view's range that still maps the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: AddrRange,
    pub(super) prot: Prot,
}

impl View {
    /// The parts of a live range; `None`: it is whole.
    pub(super) fn parts(&self) -> Result<Option<Vec<Part>>, SysError> {
        // One mapping with other rights than it had is a part, too.
        if map::is_one_mapping(self.range, self.prot) {
            return Ok(None);
        }
        let text = maps::read()?;
        let lines: Vec<Line<'_>> = maps::lines(&text).collect();
        let in_place = |line: &&Line<'_>| {
            let from = line.range.addr.max(self.range.addr);
            let offset = line.offset.checked_add((from - line.range.addr) as u64);
            let at = offset.and_then(|offset| offset.checked_sub(self.file_offset));
            from < line.range.end().min(self.range.end())
                && at == Some((from - self.range.addr) as u64)
                && line.file != maps::NO_FILE
        };
        // The same file at the place where it belongs. The owner's view tells which file. Without one (a device that is
        // dropped on revocation), or where that has become something of which nothing is here, whatever file lies in place
        // is taken for it: too much is revoked rather than too little.
        let file = lines.iter().find(|line| line.range.contains(self.sample)).map(|line| line.file);
        let file = file.filter(|file| lines.iter().filter(in_place).any(|line| line.file == *file));
        let ours = |line: &&Line<'_>| file.unwrap_or(line.file) == line.file;
        let parts = lines.iter().filter(in_place).filter(ours).map(|line| {
            let start = line.range.addr.max(self.range.addr);
            Part { range: AddrRange::new(start, line.range.end().min(self.range.end()) - start), prot: line.prot }
        });
        let parts = parts.fold(Vec::new(), |mut parts: Vec<Part>, part| {
            // Split only because the pages of one are nobody's to serve.
            match parts.last_mut().filter(|last| last.range.end() == part.range.addr && last.prot == part.prot) {
                Some(last) => last.range.len += part.range.len,
                None => parts.push(part),
            }
            parts
        });
        Ok((parts != [Part { range: self.range, prot: self.prot }]).then_some(parts))
    }

    /// The ranges of the parts, or the whole.
    pub(super) fn part_ranges(&self, place: &Place) -> Vec<AddrRange> {
        match &place.parts {
            Some(parts) => parts.iter().map(|part| part.range).collect(),
            None => vec![self.range],
        }
    }
}
