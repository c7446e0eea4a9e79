//! Bulk copies that know how far they came.
//!
//! Wide moves in ascending order, unrolled; `rep movsb` was measured too and loses, by up to 2.7 times for small and
//! badly aligned copies. When a wide move faults, the bytes up to the page's edge are done one by one, and the
//! first of those that faults ends the copy: that makes the count exact. A fault in the caller's buffer has no entry.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about, and plain accesses to the caller's buffer.

use super::{load, once_per_unit, recovery, register, store};
use core::arch::asm;

/// What one round of the unrolled loop moves.
const ROUND: usize = 128;
/// From here it pays to align the stores first: a cache line is then never written in two halves.
const ALIGN_FROM: usize = 1024;
/// What stores are aligned to.
const ALIGNMENT: usize = 32;

/// Copies out of a region; how many bytes were done. None beyond them was written to `dst`.
///
/// # Safety
///
/// `raw`'s contract for `src`; `dst` is valid for writes of `len` bytes.
#[inline]
pub(crate) unsafe fn copy_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: handed on.
    unsafe { copy::<Out>(dst, src, len) }
}

/// Copies into a region; how many bytes were done. None beyond them was written.
///
/// # Safety
///
/// `raw`'s contract for `dst`; `src` is valid for reads of `len` bytes.
#[inline]
pub(crate) unsafe fn copy_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: handed on.
    unsafe { copy::<In>(dst, src, len) }
}

/// Which side is the region's.
trait Direction {
    /// Moves whole rounds; how many bytes were done.
    unsafe fn rounds(dst: *mut u8, src: *const u8, len: usize) -> usize;
    /// Moves 8 bytes, at any alignment; whether it did.
    unsafe fn word(dst: *mut u8, src: *const u8) -> bool;
    /// Moves a byte; whether it did.
    unsafe fn byte(dst: *mut u8, src: *const u8) -> bool;
}

struct Out;
struct In;

unsafe fn copy<D: Direction>(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let mut done = 0;
    if len >= ROUND {
        if len >= ALIGN_FROM {
            let head = dst.addr().wrapping_neg() % ALIGNMENT;
            // SAFETY: the caller's contract; `head` is less than `len`.
            done = unsafe { small::<D>(dst, src, head) };
            if done < head {
                return done;
            }
        }
        let whole = (len - done) / ROUND * ROUND;
        // SAFETY: the caller's contract; `done + whole <= len`.
        let moved = unsafe { D::rounds(dst.wrapping_add(done), src.wrapping_add(done), whole) };
        done += moved;
        if moved < whole {
            // SAFETY: as the rounds. It faults again, at the exact byte, or goes on if the memory is back.
            return done + unsafe { small::<D>(dst.wrapping_add(done), src.wrapping_add(done), len - done) };
        }
    }
    // SAFETY: the caller's contract, for the rest.
    done + unsafe { small::<D>(dst.wrapping_add(done), src.wrapping_add(done), len - done) }
}

/// By words and bytes, ascending.
#[inline]
unsafe fn small<D: Direction>(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let mut done = 0;
    while len - done >= 8 {
        // SAFETY: the caller's contract; 8 bytes are left on both sides.
        if !unsafe { D::word(dst.wrapping_add(done), src.wrapping_add(done)) } {
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
    }
    done
}

impl Direction for Out {
    #[inline]
    unsafe fn rounds(dst: *mut u8, src: *const u8, len: usize) -> usize {
        if is_x86_feature_detected!("avx") {
            // SAFETY: the caller's contract, and the feature is there.
            unsafe { rounds_out(dst, src, len) }
        } else {
            // SAFETY: the caller's contract.
            unsafe { small::<Out>(dst, src, len) }
        }
    }

    #[inline(always)]
    unsafe fn word(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: `raw`'s contract but for the alignment, which this instruction doesn't need.
        let Ok(word) = (unsafe { load(src.cast::<u64>()) }) else {
            return false;
        };
        // SAFETY: the caller's buffer has room for 8 bytes, and nobody else uses it.
        unsafe { dst.cast::<u64>().write_unaligned(word) };
        true
    }

    #[inline(always)]
    unsafe fn byte(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: `raw`'s contract.
        let Ok(byte) = (unsafe { load(src) }) else {
            return false;
        };
        // SAFETY: the caller's buffer has room for it, and nobody else uses it.
        unsafe { dst.write(byte) };
        true
    }
}

impl Direction for In {
    #[inline]
    unsafe fn rounds(dst: *mut u8, src: *const u8, len: usize) -> usize {
        if is_x86_feature_detected!("avx") {
            // SAFETY: the caller's contract, and the feature is there.
            unsafe { rounds_in(dst, src, len) }
        } else {
            // SAFETY: the caller's contract.
            unsafe { small::<In>(dst, src, len) }
        }
    }

    #[inline(always)]
    unsafe fn word(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: the caller's buffer has 8 bytes, and nobody else writes it.
        let word = unsafe { src.cast::<u64>().read_unaligned() };
        // SAFETY: `raw`'s contract but for the alignment, which this instruction doesn't need.
        unsafe { store(dst.cast::<u64>(), word) }.is_ok()
    }

    #[inline(always)]
    unsafe fn byte(dst: *mut u8, src: *const u8) -> bool {
        // SAFETY: the caller's buffer has it, and nobody else writes it.
        let byte = unsafe { src.read() };
        // SAFETY: `raw`'s contract.
        unsafe { store(dst, byte) }.is_ok()
    }
}

/// Whole rounds, out of a region. A load that faults leaves its whole round undone.
///
/// # Safety
///
/// As `copy_out`; `len` is a multiple of `ROUND` and not 0.
#[target_feature(enable = "avx")]
unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    let stop: *const u8;
    // SAFETY: moves `len` bytes from `src` to `dst`, within the caller's contract. Nobody else uses `dst` meanwhile; anyone
    // may use the region's memory.
    unsafe {
        asm!(
            "2:",
            "20: vmovdqu ymm0, [{src}]",
            "21: vmovdqu ymm1, [{src} + 32]",
            "22: vmovdqu ymm2, [{src} + 64]",
            "23: vmovdqu ymm3, [{src} + 96]",
            "vmovdqu [{dst}], ymm0",
            "vmovdqu [{dst} + 32], ymm1",
            "vmovdqu [{dst} + 64], ymm2",
            "vmovdqu [{dst} + 96], ymm3",
            "sub {dst}, -128",
            "sub {src}, -128",
            "cmp {src}, {end}",
            "jne 2b",
            "3: vzeroupper",
            recovery!("20b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            recovery!("21b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            recovery!("22b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            recovery!("23b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            dst = inout(reg) dst => _,
            src = inout(reg) src => stop,
            end = in(reg) src.wrapping_add(len),
            scratch = out(reg) _,
            register = sym register,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            // `vzeroupper` clears the upper half of each.
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
    stop.addr() - src.addr()
}

/// Whole rounds, into a region. A store that faults says how much of its round was stored before it.
///
/// # Safety
///
/// As `copy_in`; `len` is a multiple of `ROUND`.
#[target_feature(enable = "avx")]
unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    if len == 0 {
        return 0;
    }
    let stop: *mut u8;
    let stored: usize;
    // SAFETY: moves `len` bytes from `src` to `dst`, within the caller's contract. Nobody else writes `src` meanwhile; anyone
    // may use the region's memory.
    unsafe {
        asm!(
            "2:",
            "vmovdqu ymm0, [{src}]",
            "vmovdqu ymm1, [{src} + 32]",
            "vmovdqu ymm2, [{src} + 64]",
            "vmovdqu ymm3, [{src} + 96]",
            "20: vmovdqu [{dst}], ymm0",
            "21: vmovdqu [{dst} + 32], ymm1",
            "22: vmovdqu [{dst} + 64], ymm2",
            "23: vmovdqu [{dst} + 96], ymm3",
            "sub {src}, -128",
            "sub {dst}, -128",
            "cmp {dst}, {end}",
            "jne 2b",
            "3: vzeroupper",
            recovery!("20b" => "3b", set "{stored}" = "0", addr "{dst}" + "128"),
            recovery!("21b" => "3b", set "{stored}" = "32", addr "{dst}" + "128"),
            recovery!("22b" => "3b", set "{stored}" = "64", addr "{dst}" + "128"),
            recovery!("23b" => "3b", set "{stored}" = "96", addr "{dst}" + "128"),
            dst = inout(reg) dst => stop,
            src = inout(reg) src => _,
            end = in(reg) dst.wrapping_add(len),
            stored = inout(reg) 0usize => stored,
            register = sym register,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            // `vzeroupper` clears the upper half of each.
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
    stop.addr() - dst.addr() + stored
}
