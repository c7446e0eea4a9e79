//! The ranges of this process's views: no other mapping of the crate is ever in one of them.
//!
//! A range belongs to its view as a whole, even where foreign code has made a hole in it (munmap). To the kernel the hole
//! is free, so the next mapping may be made there: page tables that are put aside, say. Then the view would replace them,
//! or they would be moved onto themselves. So every address that the kernel gives to the crate is compared with the ranges,
//! and a mapping that is in one of them stays there and fills the hole. That goes for all of an address range that was given,
//! also for a part that is only to be given back: the kernel may have no memory for that.

use super::left_over::{release, release_or_shut, sweep};
use crate::sync::inside::Mutex;
use crate::sys::identity::PerProcess;
use crate::sys::map::{self, Prot, Reserved};
use crate::sys::{Addr, AddrRange, SysError};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

/// By first address. The lock is held while address space is taken and given back, so that the comparison sees all ranges.
static RANGES: PerProcess<Mutex<Ranges>> = PerProcess::new(|| Mutex::new(BTreeMap::new()));

type Ranges = BTreeMap<Addr, Known>;

struct Known {
    range: AddrRange,
    /// A hole in it was filled, or a part of one.
    filled: bool,
}

/// Address space for a new view's range.
pub(super) fn take(len: usize, align: usize) -> Result<AddrRange, SysError> {
    let mut ranges = RANGES.get().lock_quietly();
    let range = reserve_outside(&mut ranges, len, align)?;
    ranges.insert(range.start, Known { range, filled: false });
    Ok(range)
}

/// Gives a view's range up, except `hole`, a part in which there is nothing of the view's.
pub(super) fn give_up(range: AddrRange, hole: Option<AddrRange>) {
    let mut ranges = RANGES.get().lock_quietly();
    match hole {
        // By now the hole may belong to other code.
        Some(hole) => range.around(hole).for_each(release),
        None => release(range),
    }
    ranges.remove(&range.start);
}

/// Address space in which a mapping is made, and moved away again.
pub(super) fn reserve(len: usize, align: usize) -> Result<AddrRange, SysError> {
    reserve_outside(&mut RANGES.get().lock_quietly(), len, align)
}

/// An address, a multiple of `align`, where `len` bytes are free at this moment: a hint for [`map::move_aside`], no more.
pub(super) fn free_address(len: usize, align: usize) -> Result<Addr, SysError> {
    let free = reserve(len, align)?;
    release(free);
    Ok(free.start)
}

/// A shared mapping of a file without access, in none of the ranges, at a multiple of `align` unless another thread takes
/// that address meanwhile.
pub(super) fn map_file(len: usize, align: usize, file: BorrowedFd<'_>, offset: u64) -> Result<AddrRange, SysError> {
    let mut ranges = RANGES.get().lock_quietly();
    loop {
        let free = reserve_outside(&mut ranges, len, align)?;
        release(free);
        let mapped = map::map_new(free.start, len, file, offset, Prot::None)?;
        if in_the_way(&mut ranges, mapped).is_none() {
            return Ok(mapped);
        }
        // It must not fill a hole of a range: it is a region's memory. If it cannot be unmapped, it reaches nothing, and what
        // of it is in a hole stays there: a later try would unmap what its view has put there by then.
        if !release_or_shut(mapped) {
            release_outside(&mut ranges, mapped);
        }
    }
}

/// True if it is in none of the ranges. Otherwise the kernel gave it out as a hole in one.
pub(super) fn is_outside(range: AddrRange) -> bool {
    in_the_way(&mut RANGES.get().lock_quietly(), range).is_none()
}

/// True if a hole in it was filled since the last call: what is there is not the view's mapping, or not all of it.
pub(super) fn was_filled(range: AddrRange) -> bool {
    let mut ranges = RANGES.get().lock_quietly();
    ranges.get_mut(&range.start).is_some_and(|known| std::mem::take(&mut known.filled))
}

fn reserve_outside(ranges: &mut Ranges, len: usize, align: usize) -> Result<AddrRange, SysError> {
    sweep(|range| in_the_way(ranges, range).map(|known| known.range));
    loop {
        let Reserved { whole, range } = map::reserve(len, align)?;
        if in_the_way(ranges, whole).is_none() {
            whole.around(range).for_each(release);
            return Ok(range);
        }
        // Each round fills at least a page of a hole, so the loop ends.
        release_outside(ranges, whole);
    }
}

/// Gives back what is in none of the ranges; the rest stays, and fills the holes that it is in.
fn release_outside(ranges: &mut Ranges, whole: AddrRange) {
    let mut rest = vec![whole];
    while let Some(part) = rest.pop() {
        match in_the_way(ranges, part) {
            Some(known) => {
                known.filled = true;
                let theirs = known.range.common(part).unwrap_or(part);
                rest.extend(part.around(theirs));
            }
            None => release(part),
        }
    }
}

/// A range that overlaps it.
fn in_the_way(ranges: &mut Ranges, got: AddrRange) -> Option<&mut Known> {
    let (_, last) = ranges.range_mut(..got.end()).next_back()?;
    last.range.overlaps(got).then_some(last)
}
