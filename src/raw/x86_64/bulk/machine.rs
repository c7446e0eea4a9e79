//! What this machine's processor copies fast with: asked once.
#![expect(unsafe_code, reason = "an intrinsic")]
// UNSAFETY: asks the processor about itself.

use core::arch::x86_64::{__cpuid_count, CpuidResult};
// Not from `crate::sync`: a cache of something that does not change, which the model need not know.
use core::sync::atomic::{AtomicU8, Ordering};

/// AVX, and the system saves its registers.
const AVX: u8 = 1;
/// AVX-512 with masks for bytes, on Intel's processors.
const MASKS: u8 = 2;
/// `rep movsb` that is fast from its first bytes on, on Intel's processors.
const STRING: u8 = 4;
/// The processor was asked.
const ASKED: u8 = 128;

static FOUND: AtomicU8 = AtomicU8::new(0);

#[inline(always)]
pub(super) fn has_avx() -> bool {
    found() & AVX != 0
}

pub(super) fn has_masks() -> bool {
    found() & MASKS != 0
}

/// Only true after a call of [`has_masks`], so that a copy calls nothing.
#[inline(always)]
pub(super) fn has_string() -> bool {
    // Relaxed: as in `found`.
    FOUND.load(Ordering::Relaxed) & STRING != 0
}

#[inline(always)]
fn found() -> u8 {
    // Relaxed: one byte, and every thread finds the same.
    match FOUND.load(Ordering::Relaxed) {
        0 => ask(),
        found => found,
    }
}

#[cold]
fn ask() -> u8 {
    let intel = is_from(b"GenuineIntel");
    let masks = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("bmi2");
    let flags =
        [(AVX, is_x86_feature_detected!("avx")), (MASKS, intel && masks), (STRING, intel && has_short_string_moves())];
    let found = flags.iter().filter(|(_, has)| *has).fold(ASKED, |all, (flag, _)| all | flag);
    FOUND.store(found, Ordering::Relaxed);
    found
}

fn is_from(vendor: &[u8; 12]) -> bool {
    let leaf = cpuid(0);
    let found = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    found.as_flattened() == vendor
}

/// FSRM: leaf 7, edx, bit 4.
fn has_short_string_moves() -> bool {
    cpuid(0).eax >= 7 && cpuid(7).edx & 1 << 4 != 0
}

/// A leaf of the processor's description of itself.
#[expect(clippy::allow_attributes, reason = "what is allowed depends on the Rust release")]
#[allow(unused_unsafe, reason = "the intrinsic is a safe function in later releases of Rust")]
fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 has the instruction; it has no effect.
    unsafe { __cpuid_count(leaf, 0) }
}
