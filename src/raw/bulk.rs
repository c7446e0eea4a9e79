//! Bulk copies that report how many bytes were copied.
//!
//! Wide moves in ascending order, in rounds that the architecture unrolls, or in a way that it has for memory. After a wide
//! move faults, the bytes up to the page's edge are moved by words and one by one, and the first of those that faults ends
//! the copy: so the count is exact. A fault in the caller's buffer is in no table: it is not the crate's.
//!
//! No store to a region crosses a page's edge: a processor may make a wide one in parts, of which the first are stored although a
//! later one faults (Intel's SDM, volume 3A, "Guaranteed Atomic Operations"; emulators do), and no count would have them.
#![expect(unsafe_code, reason = "raw accesses to regions and to the caller's buffers")]
// UNSAFETY: accesses within `raw`'s contract, and plain accesses to the caller's buffer.

use super::contract::Rounds;
use super::{Cpu, RECOVERABLE, load, store};

/// How many bytes one round of an architecture's unrolled loop moves.
pub(super) const ROUND: usize = 128;
/// From this length on it pays to align the stores first: a cache line is then never written in two halves.
const ALIGN_FROM: usize = 1024;
/// The alignment of stores.
const ALIGNMENT: usize = 32;
/// The smallest page that a fault can be about.
const PAGE: usize = 4096;

/// What a copy is from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// Memory, where the size of an access does not matter.
    Memory,
    /// Memory, on a machine with quick copies.
    Quick,
    /// A device file's: perhaps registers, or memory that is not cached.
    Device,
}

impl Medium {
    /// What a copy on this machine is from or to.
    pub(crate) fn of(is_device: bool) -> Self {
        match is_device {
            true => Self::Device,
            false if Cpu::is_quick() => Self::Quick,
            false => Self::Memory,
        }
    }
}

/// Copies out of a region; returns how many bytes were copied. None beyond them was written to `dst`.
///
/// # Safety
///
/// `raw`'s contract for `src`; `dst` is valid for writes of `len` bytes.
pub(crate) unsafe fn copy_out(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    // SAFETY: the caller's contract, passed on.
    let begun = unsafe { begin_out(dst, src, len, medium) };
    // SAFETY: the same; no more than `len` bytes were copied.
    if begun == len { len } else { unsafe { end_out(dst, src, len, medium, begun) } }
}

/// Copies into a region; returns how many bytes were copied. None beyond them was written.
///
/// # Safety
///
/// `raw`'s contract for `dst`; `src` is valid for reads of `len` bytes.
pub(crate) unsafe fn copy_in(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    // SAFETY: the caller's contract, passed on.
    let begun = unsafe { begin_in(dst, src, len, medium) };
    // SAFETY: the same; no more than `len` bytes were copied.
    if begun == len { len } else { unsafe { end_in(dst, src, len, medium, begun) } }
}

/// [`copy_out`], which is over if this returns `len`. Else it ends with [`end_out`].
///
/// # Safety
///
/// As [`copy_out`].
#[inline(always)]
pub(crate) unsafe fn begin_out(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    // SAFETY: the caller's contract, passed on.
    unsafe { begin::<Out>(dst, src, len, medium) }
}

/// [`copy_in`], which is over if this returns `len`. Else it ends with [`end_in`].
///
/// # Safety
///
/// As [`copy_in`].
#[inline(always)]
pub(crate) unsafe fn begin_in(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    // SAFETY: the caller's contract, passed on.
    unsafe { begin::<In>(dst, src, len, medium) }
}

/// The end of a copy of which [`begin_out`] has copied the first `done` bytes; returns how many were copied in all.
///
/// # Safety
///
/// As [`copy_out`]; `done` is at most `len`.
pub(crate) unsafe fn end_out(dst: *mut u8, src: *const u8, len: usize, medium: Medium, done: usize) -> usize {
    // SAFETY: the caller's contract, for the rest.
    if is_quickest::<Out>(dst, len, medium) { unsafe { after::<Out>(dst, src, len, done, medium) } } else { done }
}

/// The end of a copy of which [`begin_in`] has copied the first `done` bytes; returns how many were copied in all.
///
/// # Safety
///
/// As [`copy_in`]; `done` is at most `len`.
pub(crate) unsafe fn end_in(dst: *mut u8, src: *const u8, len: usize, medium: Medium, done: usize) -> usize {
    // SAFETY: the caller's contract, for the rest.
    if is_quickest::<In>(dst, len, medium) { unsafe { after::<In>(dst, src, len, done, medium) } } else { done }
}

/// The direction of a copy, which says which side is the region's.
trait Direction {
    /// How many of `len` bytes may be moved at once: not beyond a page's edge, if the stores are to the region.
    fn part(dst: *mut u8, len: usize) -> usize;
    /// True if it is all of them.
    #[inline(always)]
    fn is_part(dst: *mut u8, len: usize) -> bool {
        Self::part(dst, len) == len
    }
    /// Moves whole rounds, at least one; returns how many bytes were moved. Stores to the region are aligned, or in one page.
    unsafe fn rounds(dst: *mut u8, src: *const u8, len: usize) -> usize;
    /// Moves bytes to or from memory, on a quick machine; `len` is in `QUICK`, and a part.
    unsafe fn quick(dst: *mut u8, src: *const u8, len: usize) -> usize;
    /// Moves bytes to or from memory, if the architecture has a way for that.
    unsafe fn memory(dst: *mut u8, src: *const u8, len: usize) -> Option<usize>;
    /// True if a word may be moved here: an unaligned one only if the instruction is the crate's own, and if it is not stored
    /// across a page's edge.
    fn word_fits(dst: *mut u8, src: *const u8) -> bool;
    /// Moves 8 bytes; true if it did.
    unsafe fn word(dst: *mut u8, src: *const u8) -> bool;
    /// Moves a byte; true if it did.
    unsafe fn byte(dst: *mut u8, src: *const u8) -> bool;
}

struct Out;
struct In;

/// True if a few instructions are enough.
#[inline(always)]
fn is_quickest<D: Direction>(dst: *mut u8, len: usize, medium: Medium) -> bool {
    medium == Medium::Quick && Cpu::QUICKEST.contains(&len) && D::is_part(dst, len)
}

/// In the caller's code only what some hundred bytes of memory take, without what comes after a fault; a call for the rest.
#[inline(always)]
unsafe fn begin<D: Direction>(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    if is_quickest::<D>(dst, len, medium) {
        // SAFETY: the caller's contract.
        return unsafe { D::quick(dst, src, len) };
    }
    // SAFETY: the caller's contract.
    unsafe { copy::<D>(dst, src, len, medium) }
}

#[inline(never)]
unsafe fn copy<D: Direction>(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    if medium == Medium::Quick && Cpu::QUICK.contains(&len) {
        if !D::is_part(dst, len) {
            // SAFETY: the caller's contract.
            return unsafe { in_parts::<D>(dst, src, len, medium) };
        }
        // SAFETY: the caller's contract.
        let moved = unsafe { D::quick(dst, src, len) };
        // SAFETY: the caller's contract, for the rest.
        return if moved == len { len } else { unsafe { after::<D>(dst, src, len, moved, medium) } };
    }
    // SAFETY: the caller's contract.
    unsafe { copy_any::<D>(dst, src, len, medium) }
}

/// Page by page of the region, for stores.
#[inline(never)]
unsafe fn in_parts<D: Direction>(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    let mut done = 0;
    while done < len {
        let part = D::part(dst.wrapping_add(done), len - done);
        // SAFETY: the caller's contract, for a part.
        let moved = unsafe { copy::<D>(dst.wrapping_add(done), src.wrapping_add(done), part, medium) };
        done += moved;
        if moved < part {
            break;
        }
    }
    done
}

#[inline(never)]
unsafe fn copy_any<D: Direction>(dst: *mut u8, src: *const u8, len: usize, medium: Medium) -> usize {
    if medium != Medium::Device {
        // SAFETY: the caller's contract.
        match unsafe { D::memory(dst, src, len) } {
            Some(moved) if moved == len => return len,
            // SAFETY: the caller's contract, for the rest.
            Some(moved) => return unsafe { after::<D>(dst, src, len, moved, medium) },
            None => {}
        }
    }
    // SAFETY: the caller's contract.
    unsafe { by_rounds::<D>(dst, src, len) }
}

/// Goes on after `done` bytes to or from memory: near a fault, or near a page's edge where some bytes by words are faster.
#[cold]
#[inline(never)]
unsafe fn after<D: Direction>(dst: *mut u8, src: *const u8, len: usize, mut done: usize, medium: Medium) -> usize {
    loop {
        let next = ROUND.min(len - done);
        // SAFETY: the caller's contract, for the next bytes.
        let moved = unsafe { small::<D>(dst.wrapping_add(done), src.wrapping_add(done), next) };
        done += moved;
        if moved < next || done == len {
            return done;
        }
        let (dst, src, left) = (dst.wrapping_add(done), src.wrapping_add(done), len - done);
        done += match medium {
            // SAFETY: the caller's contract, for the rest.
            Medium::Quick if Cpu::QUICK.contains(&left) => unsafe { D::quick(dst, src, D::part(dst, left)) },
            // SAFETY: the same.
            _ => unsafe { D::memory(dst, src, left) }.unwrap_or(0),
        };
    }
}

/// Copies by rounds, and what is less by words and bytes, in ascending order.
#[inline(never)]
unsafe fn by_rounds<D: Direction>(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let mut done = 0;
    if len >= ROUND {
        if len >= ALIGN_FROM || !D::is_part(dst, len) {
            let head = dst.addr().wrapping_neg() % ALIGNMENT;
            // SAFETY: the caller's contract; `head` is less than `len`.
            done = unsafe { small::<D>(dst, src, head) };
            if done < head {
                return done;
            }
        }
        let whole = (len - done) / ROUND * ROUND;
        if whole > 0 {
            // SAFETY: the caller's contract; `done + whole <= len`.
            done += unsafe { D::rounds(dst.wrapping_add(done), src.wrapping_add(done), whole) };
        }
    }
    // After a fault in a round this faults again, at the exact byte, or goes on if the memory is back.
    // SAFETY: the caller's contract, for the rest.
    done + unsafe { small::<D>(dst.wrapping_add(done), src.wrapping_add(done), len - done) }
}

/// Copies by words and bytes, in ascending order.
#[inline]
unsafe fn small<D: Direction>(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let (mut done, mut faulted) = (0, false);
    while len - done >= 8 && D::word_fits(dst.wrapping_add(done), src.wrapping_add(done)) {
        // SAFETY: the caller's contract; 8 bytes are left on both sides.
        faulted = !unsafe { D::word(dst.wrapping_add(done), src.wrapping_add(done)) };
        if faulted {
            break;
        }
        done += 8;
    }
    while done < len {
        // SAFETY: the caller's contract; a byte is left on both sides.
        if !unsafe { D::byte(dst.wrapping_add(done), src.wrapping_add(done)) } {
            break;
        }
        done += 1;
        if !faulted && len - done >= 8 && D::word_fits(dst.wrapping_add(done), src.wrapping_add(done)) {
            // SAFETY: the caller's contract, for the rest, by words again, which fit from here on.
            return done + unsafe { small::<D>(dst.wrapping_add(done), src.wrapping_add(done), len - done) };
        }
    }
    done
}

impl Direction for Out {
    #[inline(always)]
    fn part(_dst: *mut u8, len: usize) -> usize {
        len
    }

    #[inline(always)]
    fn word_fits(_dst: *mut u8, src: *const u8) -> bool {
        RECOVERABLE || src.cast::<u64>().is_aligned()
    }

    #[inline]
    unsafe fn rounds(dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: handed on.
        unsafe { Cpu::rounds_out(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn quick(dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: handed on.
        unsafe { Cpu::quick_out(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn memory(dst: *mut u8, src: *const u8, len: usize) -> Option<usize> {
        // SAFETY: handed on.
        unsafe { Cpu::memory_out(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn word(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: `raw`'s contract; `word_fits` has checked the alignment.
        let Ok(word) = (unsafe { load(src.cast::<u64>()) }) else {
            return false;
        };
        // SAFETY: the caller's buffer has room for 8 bytes, and nothing else uses it.
        unsafe { dst.cast::<u64>().write_unaligned(word) };
        true
    }

    #[inline(always)]
    unsafe fn byte(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: `raw`'s contract.
        let Ok(byte) = (unsafe { load(src) }) else {
            return false;
        };
        // SAFETY: the caller's buffer has room for it, and nothing else uses it.
        unsafe { dst.write(byte) };
        true
    }
}

impl Direction for In {
    #[inline(always)]
    fn part(dst: *mut u8, len: usize) -> usize {
        len.min(PAGE - dst.addr() % PAGE)
    }

    #[inline(always)]
    fn word_fits(dst: *mut u8, _src: *const u8) -> bool {
        dst.cast::<u64>().is_aligned() || RECOVERABLE && Self::is_part(dst, 8)
    }

    #[inline]
    unsafe fn rounds(dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: handed on.
        unsafe { Cpu::rounds_in(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn quick(dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: handed on.
        unsafe { Cpu::quick_in(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn memory(dst: *mut u8, src: *const u8, len: usize) -> Option<usize> {
        // SAFETY: handed on.
        unsafe { Cpu::memory_in(dst, src, len) }
    }

    #[inline(always)]
    unsafe fn word(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: the caller's buffer has 8 bytes, and nothing else writes it.
        let word = unsafe { src.cast::<u64>().read_unaligned() };
        // SAFETY: `raw`'s contract; `word_fits` has checked the alignment.
        unsafe { store(dst.cast::<u64>(), word) }.is_ok()
    }

    #[inline(always)]
    unsafe fn byte(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: the caller's buffer has the byte, and nothing else writes it.
        let byte = unsafe { src.read() };
        // SAFETY: `raw`'s contract.
        unsafe { store(dst, byte) }.is_ok()
    }
}
