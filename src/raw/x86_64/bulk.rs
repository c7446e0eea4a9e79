//! The unrolled loops of the bulk copies, with AVX; a machine without it copies by words.
//!
//! `rep movsb` was measured too: it is up to 2.7 times slower for small and badly aligned copies. SSE2 is 1.5 times slower
//! from the caches.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::{once_per_unit, recovery, register};
use core::arch::asm;

/// Whole rounds out of a region; returns how many bytes were moved.
///
/// # Safety
///
/// `raw`'s contract for `src`; `dst` is valid for writes; `len` is a multiple of `bulk::ROUND` and not 0.
#[inline]
pub(crate) unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    if is_x86_feature_detected!("avx") {
        // SAFETY: the caller's contract, and the feature is there.
        unsafe { avx_out(dst, src, len) }
    } else {
        0
    }
}

/// Whole rounds into a region; returns how many bytes were moved.
///
/// # Safety
///
/// `raw`'s contract for `dst`; `src` is valid for reads; `len` is a multiple of `bulk::ROUND` and not 0.
#[inline]
pub(crate) unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    if is_x86_feature_detected!("avx") {
        // SAFETY: the caller's contract, and the feature is there.
        unsafe { avx_in(dst, src, len) }
    } else {
        0
    }
}

/// Whole rounds, out of a region. A load that faults leaves its whole round undone.
///
/// # Safety
///
/// As `rounds_out`.
#[target_feature(enable = "avx")]
unsafe fn avx_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let stop: *const u8;
    // SAFETY: moves `len` bytes from `src` to `dst`, within the caller's contract. Nothing else uses `dst` meanwhile; other
    // threads, the device side, a guest and other processes may use the region's memory.
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
/// As `rounds_in`.
#[target_feature(enable = "avx")]
unsafe fn avx_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let stop: *mut u8;
    let stored: usize;
    // SAFETY: moves `len` bytes from `src` to `dst`, within the caller's contract. Nothing else writes `src` meanwhile;
    // other threads, the device side, a guest and other processes may use the region's memory.
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
