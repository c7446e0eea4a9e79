//! Unrolled loops with AVX.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use crate::raw::table::text::{rounds_in, rounds_out};

/// A loop, `$direction`, that ends with `vzeroupper`: it clears the upper half of every vector register.
macro_rules! avx {
    ($direction:ident, $dst:ident, $src:ident, $len:ident, [$($line:literal),+ $(,)?], $labels:tt) => {
        $direction!(
            $dst, $src, $len, [$($line,)+ "3: vzeroupper"], $labels,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
        )
    };
}

/// # Safety
///
/// As `rounds_out`, and the machine has AVX.
#[target_feature(enable = "avx")]
pub(super) unsafe fn avx_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    avx!(
        rounds_out,
        dst,
        src,
        len,
        [
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
        ],
        ["20b", "21b", "22b", "23b"]
    )
}

/// # Safety
///
/// As `rounds_in`, and the machine has AVX.
#[target_feature(enable = "avx")]
pub(super) unsafe fn avx_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    avx!(
        rounds_in,
        dst,
        src,
        len,
        [
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
        ],
        ["20b" after "0", "21b" after "32", "22b" after "64", "23b" after "96"]
    )
}
