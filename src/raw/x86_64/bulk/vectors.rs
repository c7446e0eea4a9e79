//! AVX-512: vectors of 64 bytes, of which the last two overlap as the length has it, and masked ones for what is less.
//!
//! Only the registers from 16 on, whose use needs no `vzeroupper`.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use crate::raw::table::text::recovery;
use core::ops::Range;
use pairs::{four_pairs_in, four_pairs_out, two_pairs_in, two_pairs_out};
use rounds::{rounds_in, rounds_out};

mod pairs;
mod rounds;

/// The bytes of one vector register.
const VECTOR: usize = 64;
/// How many bytes one round of the loops moves, and a pair of vectors.
const ROUND: usize = 2 * VECTOR;
/// A register that held an address of the region's has a smaller number than this after a fault, which says where it was.
const CODES: usize = 8;
/// A mask saves bytes beyond a page's edge from being touched, but if nothing is mapped there it takes as long as a fault.
const PAGE: usize = 4096;

/// Copies of these lengths are made here: from the upper one on `rep movsb` is as fast.
pub(super) const QUICK: Range<usize> = 0..12 << 10;
/// A vector, or two, four or eight, are enough for these.
pub(super) const QUICKEST: Range<usize> = VECTOR..4 * ROUND + 1;

/// True if a vector that starts at `p` lies in one page.
#[inline(always)]
fn in_one_page(p: *const u8) -> bool {
    p.addr() % PAGE <= PAGE - VECTOR
}

/// A copy in ascending order by vectors. One that overlaps the vector before moves some bytes twice, as `memcpy` does: what is
/// stored again is the same.
macro_rules! vectors {
    ($name:ident, $short:ident, $one:ident, $pair:ident, $two_pairs:ident, $four_pairs:ident, $rounds:ident) => {
        /// Returns how many bytes it moved.
        ///
        /// # Safety
        ///
        /// As the functions of `Rounds` for memory, and the machine has masks.
        #[inline(always)]
        pub(super) unsafe fn $name(dst: *mut u8, src: *const u8, len: usize) -> usize {
            if len > 4 * ROUND {
                // SAFETY: the caller's contract.
                return unsafe { $rounds(dst, src, len) };
            }
            // The shortest first: of a short copy the branches up to it are what costs.
            if len < VECTOR {
                // SAFETY: the caller's contract; 1 to 63 bytes.
                return if len > 0 { unsafe { $short(dst, src, len) } } else { 0 };
            }
            if len == VECTOR {
                // SAFETY: the caller's contract; 64 bytes.
                return unsafe { $one(dst, src, len) };
            }
            if len <= ROUND {
                // SAFETY: the caller's contract; 65 to 128 bytes.
                return unsafe { $pair(dst, src, len) };
            }
            if len <= 2 * ROUND {
                // SAFETY: the caller's contract; 129 to 256 bytes.
                return unsafe { $two_pairs(dst, src, len) };
            }
            // SAFETY: the caller's contract; 257 to 512 bytes.
            unsafe { $four_pairs(dst, src, len) }
        }
    };
}

vectors!(vectors_out, short_out, one_out, pair_out, two_pairs_out, four_pairs_out, rounds_out);
vectors!(vectors_in, short_in, one_in, pair_in, two_pairs_in, four_pairs_in, rounds_in);

/// 1 to 63 bytes by one masked move; returns how many were moved: none if it faulted, or if it would have been slow. `$load`
/// and `$store` are the labels of the load and the store, and `$side` is the region's.
macro_rules! short {
    ($dst:ident, $src:ident, $len:ident, $side:literal, $load:literal, $store:literal) => {{
        if !in_one_page($dst) || !in_one_page($src) {
            return 0;
        }
        let moved: usize;
        // SAFETY: moves the `$len` bytes that the mask has, within the caller's contract.
        unsafe {
            core::arch::asm!(
                "bzhi {mask}, {all}, {len}",
                "kmovq k1, {mask}",
                concat!($load, " vmovdqu8 zmm16 {{k1}} {{z}}, [{src}]"),
                concat!($store, " vmovdqu8 [{dst}] {{k1}}, zmm16"),
                "3:",
                recovery!("20b" => "3b", set "{len}" = "0", addr $side + "64"),
                mask = out(reg) _,
                all = in(reg) u64::MAX,
                len = inout(reg) $len => moved,
                dst = in(reg) $dst,
                src = in(reg) $src,
                out("zmm16") _,
                out("k1") _,
                register = sym crate::raw::table::register,
                options(nostack),
            );
        }
        moved
    }};
}

/// # Safety
///
/// As `memory_out`, the machine has masks, and `len` is 1 to 63.
#[inline(always)]
unsafe fn short_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    short!(dst, src, len, "{src}", "20:", "")
}

/// # Safety
///
/// As `memory_in`, the machine has masks, and `len` is 1 to 63.
#[inline(always)]
unsafe fn short_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    short!(dst, src, len, "{dst}", "", "20:")
}

/// 64 bytes by one vector; returns how many were moved: none if it faulted. `$load` and `$store` as in `short`.
macro_rules! one {
    ($dst:ident, $src:ident, $len:ident, $side:literal, $load:literal, $store:literal) => {{
        let moved: usize;
        // SAFETY: moves 64 bytes, within the caller's contract.
        unsafe {
            core::arch::asm!(
                concat!($load, " vmovdqu64 zmm16, [{src}]"),
                concat!($store, " vmovdqu64 [{dst}], zmm16"),
                "3:",
                recovery!("20b" => "3b", set "{len}" = "0", addr $side + "64"),
                len = inout(reg) $len => moved,
                dst = in(reg) $dst,
                src = in(reg) $src,
                out("zmm16") _,
                register = sym crate::raw::table::register,
                options(nostack, preserves_flags),
            );
        }
        moved
    }};
}

/// # Safety
///
/// As `memory_out`, the machine has AVX-512, and `len` is 64.
#[inline(always)]
unsafe fn one_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    one!(dst, src, len, "{src}", "20:", "")
}

/// # Safety
///
/// As `memory_in`, the machine has AVX-512, and `len` is 64.
#[inline(always)]
unsafe fn one_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    one!(dst, src, len, "{dst}", "", "20:")
}

/// 65 to 128 bytes by two vectors, which overlap; returns how many were moved: not all if one faulted. `$load` and `$store` are
/// the labels of the loads and stores, `$side` is the region's, and `$first` what is moved when the second faults.
macro_rules! pair {
    ($dst:ident, $src:ident, $len:ident, $side:literal, $first:literal, [$load_1:literal, $load_2:literal], [$store_1:literal, $store_2:literal]) => {{
        let moved: usize;
        // SAFETY: moves the first 64 of the `$len` bytes and then the last 64, within the caller's contract.
        unsafe {
            core::arch::asm!(
                concat!($load_1, " vmovdqu64 zmm16, [{src}]"),
                concat!($load_2, " vmovdqu64 zmm17, [{src} + {len} - 64]"),
                concat!($store_1, " vmovdqu64 [{dst}], zmm16"),
                concat!($store_2, " vmovdqu64 [{dst} + {len} - 64], zmm17"),
                "3:",
                recovery!("20b" => "3b", set "{len}" = "0", addr $side + "64"),
                recovery!("21b" => "3b", set "{len}" = $first, addr $side + "128"),
                len = inout(reg) $len => moved,
                dst = in(reg) $dst,
                src = in(reg) $src,
                out("zmm16") _,
                out("zmm17") _,
                register = sym crate::raw::table::register,
                options(nostack, preserves_flags),
            );
        }
        moved
    }};
}

/// # Safety
///
/// As `memory_out`, the machine has AVX-512, and `len` is 65 to 128.
#[inline(always)]
unsafe fn pair_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    pair!(dst, src, len, "{src}", "0", ["20:", "21:"], ["", ""])
}

/// # Safety
///
/// As `memory_in`, the machine has AVX-512, and `len` is 65 to 128.
#[inline(always)]
unsafe fn pair_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    pair!(dst, src, len, "{dst}", "64", ["", ""], ["20:", "21:"])
}
