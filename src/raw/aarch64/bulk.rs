//! The unrolled loops of the bulk copies, with pairs of vector registers.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::{once_per_unit, recovery, register};
use core::arch::asm;

/// Whole rounds out of a region; returns how many bytes were moved. A load that faults leaves its whole round undone.
///
/// # Safety
///
/// `raw`'s contract for `src`; `dst` is valid for writes; `len` is a multiple of `bulk::ROUND` and not 0.
#[inline]
pub(crate) unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let stop: *const u8;
    // SAFETY: moves `len` bytes from `src` to `dst`, within the caller's contract. Nothing else uses `dst` meanwhile; other
    // threads, the device side, a guest and other processes may use the region's memory.
    unsafe {
        asm!(
            "2:",
            "20: ldp q0, q1, [{src}]",
            "21: ldp q2, q3, [{src}, #32]",
            "22: ldp q4, q5, [{src}, #64]",
            "23: ldp q6, q7, [{src}, #96]",
            "stp q0, q1, [{dst}]",
            "stp q2, q3, [{dst}, #32]",
            "stp q4, q5, [{dst}, #64]",
            "stp q6, q7, [{dst}, #96]",
            "add {dst}, {dst}, #128",
            "add {src}, {src}, #128",
            "cmp {src}, {end}",
            "b.ne 2b",
            "3:",
            recovery!("20b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            recovery!("21b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            recovery!("22b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            recovery!("23b" => "3b", set "{scratch}" = "0", addr "{src}" + "128"),
            dst = inout(reg) dst => _,
            src = inout(reg) src => stop,
            end = in(reg) src.wrapping_add(len),
            scratch = out(reg) _,
            register = sym register,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            options(nostack),
        );
    }
    stop.addr() - src.addr()
}

/// Whole rounds into a region; returns how many bytes were moved. A store that faults says how much of its round was stored
/// before it. Of the pair that faulted, the bytes before the page's edge may have been stored: the words and bytes that
/// follow store the same again.
///
/// # Safety
///
/// `raw`'s contract for `dst`; `src` is valid for reads; `len` is a multiple of `bulk::ROUND` and not 0.
#[inline]
pub(crate) unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let stop: *mut u8;
    let stored: usize;
    // SAFETY: moves `len` bytes from `src` to `dst`, within the caller's contract. Nothing else writes `src` meanwhile;
    // other threads, the device side, a guest and other processes may use the region's memory.
    unsafe {
        asm!(
            "2:",
            "ldp q0, q1, [{src}]",
            "ldp q2, q3, [{src}, #32]",
            "ldp q4, q5, [{src}, #64]",
            "ldp q6, q7, [{src}, #96]",
            "20: stp q0, q1, [{dst}]",
            "21: stp q2, q3, [{dst}, #32]",
            "22: stp q4, q5, [{dst}, #64]",
            "23: stp q6, q7, [{dst}, #96]",
            "add {src}, {src}, #128",
            "add {dst}, {dst}, #128",
            "cmp {dst}, {end}",
            "b.ne 2b",
            "3:",
            recovery!("20b" => "3b", set "{stored}" = "0", addr "{dst}" + "128"),
            recovery!("21b" => "3b", set "{stored}" = "32", addr "{dst}" + "128"),
            recovery!("22b" => "3b", set "{stored}" = "64", addr "{dst}" + "128"),
            recovery!("23b" => "3b", set "{stored}" = "96", addr "{dst}" + "128"),
            dst = inout(reg) dst => stop,
            src = inout(reg) src => _,
            end = in(reg) dst.wrapping_add(len),
            stored = inout(reg) 0usize => stored,
            register = sym register,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            options(nostack),
        );
    }
    stop.addr() - dst.addr() + stored
}
