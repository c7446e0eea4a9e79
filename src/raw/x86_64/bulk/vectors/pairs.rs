//! 129 to 512 bytes by pairs of vectors, of which the last half ends with the last byte.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::{CODES, ROUND, VECTOR};
use crate::raw::table::text::recovery;

/// 129 to 256 bytes: the first 128 and the last.
///
/// # Safety
///
/// As `memory_out`, the machine has AVX-512, and `len` is 129 to 256.
#[inline(always)]
pub(super) unsafe fn two_pairs_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let alive: usize;
    // SAFETY: moves the first and the last 128 of the `len` bytes, within the caller's contract. All loads come before the
    // first store.
    unsafe {
        core::arch::asm!(
            "20: vmovdqu64 zmm16, [{src}]",
            "21: vmovdqu64 zmm17, [{src} + 64]",
            "22: vmovdqu64 zmm18, [{last}]",
            "23: vmovdqu64 zmm19, [{last} + 64]",
            "vmovdqu64 [{dst}], zmm16",
            "vmovdqu64 [{dst} + 64], zmm17",
            "vmovdqu64 [{dst} + {len} - 128], zmm18",
            "vmovdqu64 [{dst} + {len} - 64], zmm19",
            "3:",
            recovery!("20b" => "3b", set "{last}" = "0", addr "{src}" + "64"),
            recovery!("21b" => "3b", set "{last}" = "0", addr "{src}" + "128"),
            recovery!("22b" => "3b", set "{last}" = "0", addr "{last}" + "64"),
            recovery!("23b" => "3b", set "{last}" = "0", addr "{last}" + "128"),
            len = in(reg) len,
            dst = in(reg) dst,
            src = in(reg) src,
            last = inout(reg) src.wrapping_add(len - ROUND) => alive,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            register = sym crate::raw::table::register,
            options(nostack, preserves_flags),
        );
    }
    if alive != 0 { len } else { 0 }
}

/// # Safety
///
/// As `memory_in`, the machine has AVX-512, and `len` is 129 to 256.
#[inline(always)]
pub(super) unsafe fn two_pairs_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let code: usize;
    // SAFETY: moves the first and the last 128 of the `len` bytes, within the caller's contract.
    unsafe {
        core::arch::asm!(
            "vmovdqu64 zmm16, [{src}]",
            "vmovdqu64 zmm17, [{src} + 64]",
            "vmovdqu64 zmm18, [{src} + {len} - 128]",
            "vmovdqu64 zmm19, [{src} + {len} - 64]",
            "20: vmovdqu64 [{dst}], zmm16",
            "21: vmovdqu64 [{dst} + 64], zmm17",
            "22: vmovdqu64 [{last}], zmm18",
            "23: vmovdqu64 [{last} + 64], zmm19",
            "3:",
            recovery!("20b" => "3b", set "{last}" = "0", addr "{dst}" + "64"),
            recovery!("21b" => "3b", set "{last}" = "1", addr "{dst}" + "128"),
            recovery!("22b" => "3b", set "{last}" = "2", addr "{last}" + "64"),
            recovery!("23b" => "3b", set "{last}" = "3", addr "{last}" + "128"),
            len = in(reg) len,
            dst = in(reg) dst,
            src = in(reg) src,
            last = inout(reg) dst.wrapping_add(len - ROUND) => code,
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            register = sym crate::raw::table::register,
            options(nostack, preserves_flags),
        );
    }
    match code {
        CODES.. => len,
        3.. => ROUND.max(len - VECTOR),
        _ => code * VECTOR,
    }
}

/// 257 to 512 bytes: the first 256 and the last.
///
/// # Safety
///
/// As `memory_out`, the machine has AVX-512, and `len` is 257 to 512.
#[inline(always)]
pub(super) unsafe fn four_pairs_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let alive: usize;
    // SAFETY: moves the first and the last 256 of the `len` bytes, within the caller's contract. All loads come before the
    // first store.
    unsafe {
        core::arch::asm!(
            "20: vmovdqu64 zmm16, [{first}]",
            "21: vmovdqu64 zmm17, [{first} + 64]",
            "22: vmovdqu64 zmm18, [{first_2}]",
            "23: vmovdqu64 zmm19, [{first_2} + 64]",
            "24: vmovdqu64 zmm20, [{last}]",
            "25: vmovdqu64 zmm21, [{last} + 64]",
            "26: vmovdqu64 zmm22, [{last_2}]",
            "27: vmovdqu64 zmm23, [{last_2} + 64]",
            "vmovdqu64 [{dst}], zmm16",
            "vmovdqu64 [{dst} + 64], zmm17",
            "vmovdqu64 [{dst} + 128], zmm18",
            "vmovdqu64 [{dst} + 192], zmm19",
            "vmovdqu64 [{dst} + {len} - 256], zmm20",
            "vmovdqu64 [{dst} + {len} - 192], zmm21",
            "vmovdqu64 [{dst} + {len} - 128], zmm22",
            "vmovdqu64 [{dst} + {len} - 64], zmm23",
            "3:",
            recovery!("20b" => "3b", set "{last}" = "0", addr "{first}" + "64"),
            recovery!("21b" => "3b", set "{last}" = "0", addr "{first}" + "128"),
            recovery!("22b" => "3b", set "{last}" = "0", addr "{first_2}" + "64"),
            recovery!("23b" => "3b", set "{last}" = "0", addr "{first_2}" + "128"),
            recovery!("24b" => "3b", set "{last}" = "0", addr "{last}" + "64"),
            recovery!("25b" => "3b", set "{last}" = "0", addr "{last}" + "128"),
            recovery!("26b" => "3b", set "{last}" = "0", addr "{last_2}" + "64"),
            recovery!("27b" => "3b", set "{last}" = "0", addr "{last_2}" + "128"),
            len = in(reg) len,
            dst = in(reg) dst,
            first = in(reg) src,
            first_2 = in(reg) src.wrapping_add(ROUND),
            last = inout(reg) src.wrapping_add(len - 2 * ROUND) => alive,
            last_2 = in(reg) src.wrapping_add(len - ROUND),
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            register = sym crate::raw::table::register,
            options(nostack, preserves_flags),
        );
    }
    if alive != 0 { len } else { 0 }
}

/// # Safety
///
/// As `memory_in`, the machine has AVX-512, and `len` is 257 to 512.
#[inline(always)]
pub(super) unsafe fn four_pairs_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let code: usize;
    // SAFETY: moves the first and the last 256 of the `len` bytes, within the caller's contract.
    unsafe {
        core::arch::asm!(
            "vmovdqu64 zmm16, [{src}]",
            "vmovdqu64 zmm17, [{src} + 64]",
            "vmovdqu64 zmm18, [{src} + 128]",
            "vmovdqu64 zmm19, [{src} + 192]",
            "vmovdqu64 zmm20, [{src} + {len} - 256]",
            "vmovdqu64 zmm21, [{src} + {len} - 192]",
            "vmovdqu64 zmm22, [{src} + {len} - 128]",
            "vmovdqu64 zmm23, [{src} + {len} - 64]",
            "20: vmovdqu64 [{first}], zmm16",
            "21: vmovdqu64 [{first} + 64], zmm17",
            "22: vmovdqu64 [{first_2}], zmm18",
            "23: vmovdqu64 [{first_2} + 64], zmm19",
            "24: vmovdqu64 [{last}], zmm20",
            "25: vmovdqu64 [{last} + 64], zmm21",
            "26: vmovdqu64 [{last_2}], zmm22",
            "27: vmovdqu64 [{last_2} + 64], zmm23",
            "3:",
            recovery!("20b" => "3b", set "{last}" = "0", addr "{first}" + "64"),
            recovery!("21b" => "3b", set "{last}" = "1", addr "{first}" + "128"),
            recovery!("22b" => "3b", set "{last}" = "2", addr "{first_2}" + "64"),
            recovery!("23b" => "3b", set "{last}" = "3", addr "{first_2}" + "128"),
            recovery!("24b" => "3b", set "{last}" = "4", addr "{last}" + "64"),
            recovery!("25b" => "3b", set "{last}" = "5", addr "{last}" + "128"),
            recovery!("26b" => "3b", set "{last}" = "6", addr "{last_2}" + "64"),
            recovery!("27b" => "3b", set "{last}" = "7", addr "{last_2}" + "128"),
            len = in(reg) len,
            src = in(reg) src,
            first = in(reg) dst,
            first_2 = in(reg) dst.wrapping_add(ROUND),
            last = inout(reg) dst.wrapping_add(len - 2 * ROUND) => code,
            last_2 = in(reg) dst.wrapping_add(len - ROUND),
            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            register = sym crate::raw::table::register,
            options(nostack, preserves_flags),
        );
    }
    match code {
        CODES.. => len,
        5.. => (2 * ROUND).max(len - (8 - code) * VECTOR),
        _ => code * VECTOR,
    }
}
