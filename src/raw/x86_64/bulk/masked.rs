//! AVX-512: vectors of 64 bytes, and masked ones for what is less.
//!
//! Only the registers from 16 on, whose use needs no `vzeroupper`.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use crate::raw::table::text::{recovery, rounds_in, rounds_out};

/// The bytes of one vector register.
const VECTOR: usize = 64;
/// How many bytes one round of the loops moves.
const ROUND: usize = 2 * VECTOR;
/// From this length on it pays to align the stores first.
const ALIGN_FROM: usize = 512;
/// A mask saves bytes beyond a page's edge from being touched, but if nothing is mapped there it takes as long as a fault.
const PAGE: usize = 4096;

/// True if a vector that starts `from` bytes after `p` lies in one page.
#[inline(always)]
fn in_one_page(p: *const u8, from: usize) -> bool {
    p.wrapping_add(from).addr() % PAGE <= PAGE - VECTOR
}

/// A copy by masked moves and a loop, in ascending order. `$short` and `$rounds` are the two for the direction.
macro_rules! masked {
    ($name:ident, $long:ident, $short:ident, $rounds:ident) => {
        /// Returns how many bytes it moved.
        ///
        /// # Safety
        ///
        /// As the functions of `Rounds` for memory, and the machine has masks.
        #[inline(always)]
        pub(super) unsafe fn $name(dst: *mut u8, src: *const u8, len: usize) -> usize {
            if len > ROUND {
                // SAFETY: the caller's contract.
                return unsafe { $long(dst, src, len) };
            }
            // SAFETY: the caller's contract.
            if len > 0 { unsafe { $short(dst, src, len) } } else { 0 }
        }

        /// More than a round.
        #[inline(never)]
        unsafe fn $long(dst: *mut u8, src: *const u8, len: usize) -> usize {
            let mut done = 0;
            if len >= ALIGN_FROM {
                done = dst.addr().wrapping_neg() % VECTOR;
                // SAFETY: the caller's contract; `done` is less than `len` and than a vector.
                if done > 0 && unsafe { $short(dst, src, done) } < done {
                    return 0;
                }
            }
            let whole = (len - done) / ROUND * ROUND;
            // SAFETY: the caller's contract; `done + whole <= len`, and `whole` is not 0.
            let moved = unsafe { $rounds(dst.wrapping_add(done), src.wrapping_add(done), whole) };
            done += moved;
            let rest = len - done;
            if moved == whole && rest > 0 {
                // SAFETY: the caller's contract, for the rest.
                done += unsafe { $short(dst.wrapping_add(done), src.wrapping_add(done), rest) };
            }
            done
        }
    };
}

masked!(masked_out, long_out, short_out, vectors_out);
masked!(masked_in, long_in, short_in, vectors_in);

/// 1 to 128 bytes by one or two moves of which the last is masked; returns how many were moved: not all if one faulted, none
/// if one would have been slow. `$load` and `$store` are the labels of the loads and stores, `$side` is the region's, and
/// `$first` what is moved when the second faults.
macro_rules! short {
    ($dst:ident, $src:ident, $len:ident, $side:literal, $first:literal, [$load_1:literal, $load_2:literal], [$store_1:literal, $store_2:literal]) => {{
        let last = ($len - 1) / VECTOR * VECTOR;
        if !in_one_page($dst, last) || !in_one_page($src, last) {
            return 0;
        }
        let moved: usize;
        if last == 0 {
            // SAFETY: moves the `$len` bytes that the mask has, within the caller's contract.
            unsafe {
                core::arch::asm!(
                    "bzhi {mask}, {all}, {len}",
                    "kmovq k1, {mask}",
                    concat!($load_1, " vmovdqu8 zmm16 {{k1}} {{z}}, [{src}]"),
                    concat!($store_1, " vmovdqu8 [{dst}] {{k1}}, zmm16"),
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
        } else {
            // SAFETY: moves 64 bytes and then those that the mask has, within the caller's contract.
            unsafe {
                core::arch::asm!(
                    "lea {mask}, [{len} - 64]",
                    "bzhi {mask}, {all}, {mask}",
                    "kmovq k1, {mask}",
                    concat!($load_1, " vmovdqu8 zmm16, [{src}]"),
                    concat!($load_2, " vmovdqu8 zmm17 {{k1}} {{z}}, [{src} + 64]"),
                    concat!($store_1, " vmovdqu8 [{dst}], zmm16"),
                    concat!($store_2, " vmovdqu8 [{dst} + 64] {{k1}}, zmm17"),
                    "3:",
                    recovery!("20b" => "3b", set "{len}" = "0", addr $side + "128"),
                    recovery!("21b" => "3b", set "{len}" = $first, addr $side + "128"),
                    mask = out(reg) _,
                    all = in(reg) u64::MAX,
                    len = inout(reg) $len => moved,
                    dst = in(reg) $dst,
                    src = in(reg) $src,
                    out("zmm16") _,
                    out("zmm17") _,
                    out("k1") _,
                    register = sym crate::raw::table::register,
                    options(nostack),
                );
            }
        }
        moved
    }};
}

/// # Safety
///
/// As `memory_out`, the machine has masks, and `len` is 1 to 128.
#[inline(always)]
unsafe fn short_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    short!(dst, src, len, "{src}", "0", ["20:", "21:"], ["", ""])
}

/// # Safety
///
/// As `memory_in`, the machine has masks, and `len` is 1 to 128.
#[inline(always)]
unsafe fn short_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    short!(dst, src, len, "{dst}", "64", ["", ""], ["20:", "21:"])
}

/// # Safety
///
/// As `rounds_out`, and the machine has AVX-512.
#[inline(always)]
unsafe fn vectors_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    rounds_out!(
        dst, src, len,
        [
            "2:",
            "20: vmovdqu64 zmm16, [{src}]",
            "21: vmovdqu64 zmm17, [{src} + 64]",
            "vmovdqu64 [{dst}], zmm16",
            "vmovdqu64 [{dst} + 64], zmm17",
            "sub {dst}, -128",
            "sub {src}, -128",
            "cmp {src}, {end}",
            "jne 2b",
            "3:",
        ],
        ["20b", "21b"],
        out("zmm16") _, out("zmm17") _,
    )
}

/// # Safety
///
/// As `rounds_in`, and the machine has AVX-512.
#[inline(always)]
unsafe fn vectors_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    rounds_in!(
        dst, src, len,
        [
            "2:",
            "vmovdqu64 zmm16, [{src}]",
            "vmovdqu64 zmm17, [{src} + 64]",
            "20: vmovdqu64 [{dst}], zmm16",
            "21: vmovdqu64 [{dst} + 64], zmm17",
            "sub {src}, -128",
            "sub {dst}, -128",
            "cmp {dst}, {end}",
            "jne 2b",
            "3:",
        ],
        ["20b" after "0", "21b" after "64"],
        out("zmm16") _, out("zmm17") _,
    )
}
