//! More than 512 bytes by a loop.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::{CODES, ROUND, VECTOR};
use crate::raw::table::text::recovery;

/// More than 512 bytes: a vector, rounds whose stores are aligned, so that no cache line is written in two halves, and one or
/// two vectors that end with the last byte. Two only if they are needed: a load waits for a store that was just made at the same
/// offset of another page.
///
/// # Safety
///
/// As `memory_out`, the machine has AVX-512, and `len` is more than 512.
#[inline(always)]
pub(super) unsafe fn rounds_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let skip = VECTOR - dst.addr() % VECTOR;
    let (to, code): (usize, usize);
    // SAFETY: moves the `len` bytes, within the caller's contract: the rounds end at most 127 bytes after the start of the last
    // 128.
    unsafe {
        core::arch::asm!(
            "20: vmovdqu64 zmm16, [{src}]",
            "vmovdqu64 [{dst}], zmm16",
            ".p2align 6",
            "2:",
            "21: vmovdqu64 zmm16, [{from}]",
            "22: vmovdqu64 zmm17, [{from} + 64]",
            "vmovdqu64 [{to}], zmm16",
            "vmovdqu64 [{to} + 64], zmm17",
            "sub {from}, -128",
            "sub {to}, -128",
            "cmp {to}, {end}",
            "jb 2b",
            "lea {from}, [{end} + 64]",
            "cmp {to}, {from}",
            "jae 4f",
            "23: vmovdqu64 zmm16, [{last}]",
            "vmovdqu64 [{end}], zmm16",
            "4:",
            "24: vmovdqu64 zmm17, [{last} + 64]",
            "vmovdqu64 [{end} + 64], zmm17",
            "3:",
            recovery!("20b" => "3b", set "{last}" = "0", addr "{src}" + "64"),
            recovery!("21b" => "3b", set "{last}" = "1", addr "{from}" + "64"),
            recovery!("22b" => "3b", set "{last}" = "1", addr "{from}" + "128"),
            recovery!("23b" => "3b", set "{last}" = "1", addr "{last}" + "64"),
            recovery!("24b" => "3b", set "{last}" = "2", addr "{last}" + "128"),
            dst = in(reg) dst,
            src = in(reg) src,
            to = inout(reg) dst.wrapping_add(skip) => to,
            from = inout(reg) src.wrapping_add(skip) => _,
            end = in(reg) dst.wrapping_add(len - ROUND),
            last = inout(reg) src.wrapping_add(len - ROUND) => code,
            out("zmm16") _, out("zmm17") _,
            register = sym crate::raw::table::register,
            options(nostack),
        );
    }
    let done = to - dst.addr();
    match code {
        CODES.. => len,
        0 => 0,
        1 => done.max(VECTOR),
        _ => done.max(len - VECTOR),
    }
}

/// # Safety
///
/// As `memory_in`, the machine has AVX-512, and `len` is more than 512.
#[inline(always)]
pub(super) unsafe fn rounds_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let skip = VECTOR - dst.addr() % VECTOR;
    let (to, code): (usize, usize);
    // SAFETY: as in `rounds_out`.
    unsafe {
        core::arch::asm!(
            "vmovdqu64 zmm16, [{src}]",
            "20: vmovdqu64 [{dst}], zmm16",
            ".p2align 6",
            "2:",
            "vmovdqu64 zmm16, [{from}]",
            "vmovdqu64 zmm17, [{from} + 64]",
            "21: vmovdqu64 [{to}], zmm16",
            "22: vmovdqu64 [{to} + 64], zmm17",
            "sub {from}, -128",
            "sub {to}, -128",
            "cmp {to}, {end}",
            "jb 2b",
            "lea {from}, [{end} + 64]",
            "cmp {to}, {from}",
            "jae 4f",
            "vmovdqu64 zmm16, [{last}]",
            "23: vmovdqu64 [{end}], zmm16",
            "4:",
            "vmovdqu64 zmm17, [{last} + 64]",
            "24: vmovdqu64 [{end} + 64], zmm17",
            "3:",
            recovery!("20b" => "3b", set "{end}" = "0", addr "{dst}" + "64"),
            recovery!("21b" => "3b", set "{end}" = "1", addr "{to}" + "64"),
            recovery!("22b" => "3b", set "{end}" = "2", addr "{to}" + "128"),
            recovery!("23b" => "3b", set "{end}" = "1", addr "{end}" + "64"),
            recovery!("24b" => "3b", set "{end}" = "3", addr "{end}" + "128"),
            dst = in(reg) dst,
            src = in(reg) src,
            to = inout(reg) dst.wrapping_add(skip) => to,
            from = inout(reg) src.wrapping_add(skip) => _,
            end = inout(reg) dst.wrapping_add(len - ROUND) => code,
            last = in(reg) src.wrapping_add(len - ROUND),
            out("zmm16") _, out("zmm17") _,
            register = sym crate::raw::table::register,
            options(nostack),
        );
    }
    if code >= CODES {
        return len;
    }
    let done = to - dst.addr();
    match code {
        0 => 0,
        // The first vector is stored, and perhaps not all of it again.
        1 => done.max(VECTOR),
        2 => done + VECTOR,
        _ => done.max(len - VECTOR),
    }
}
