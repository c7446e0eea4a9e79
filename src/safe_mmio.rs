//! An adapter for the `safe-mmio` crate (feature `safe-mmio`): drivers written for it, over revocable memory.
//!
//! safe-mmio 0.3.1 and later let a program put its own accesses under every pointer of the crate (`custom-mmio`), once for the
//! whole program:
//!
//! ```
//! safe_mmio::set_mmio_ops!(revocable_mmio::RevocableOps);
//! # fn main() {}
//! ```
//!
//! Its accesses have no way to answer an error. A revoked one does what PCI does for a device that is not there, as a mapping
//! with [`OnDisabled::AllOnes`](crate::OnDisabled) would: loads give all-ones, stores are lost. Whoever needs to know asks the
//! [`Region`](crate::Region), or uses [`Register`](crate::Register). Accesses to memory of other kinds work as ever, but are
//! recoverable too (on x86-64 and aarch64; elsewhere an access is what a raw pointer's is: a revoked one is a signal). Not for mappings for [accessors only](crate::MapOptions::accessors_only), whose faults need the mapping.
#![expect(unsafe_code, reason = "raw accesses by the trait's own contract")]
// UNSAFETY: forwards safe-mmio's contract (valid, aligned, one access of the width) to the recoverable instructions.

use crate::raw;
use crate::raw::Primitive;
use safe_mmio::MmioOps;

/// Recoverable accesses for [`safe_mmio::set_mmio_ops!`].
#[derive(Clone, Copy, Debug)]
pub struct RevocableOps;

macro_rules! ops {
    ($($read:ident $write:ident $ty:ident;)*) => {
        // Each is one access of its width, as the trait asks; one that faults is none.
        impl MmioOps for RevocableOps {
            $(
                unsafe fn $read(src: *const $ty) -> $ty {
                    // SAFETY: the caller's contract: valid and aligned; whoever revokes it meanwhile, it recovers.
                    unsafe { raw::load(src) }.unwrap_or($ty::ALL_ONES)
                }

                unsafe fn $write(dst: *mut $ty, value: $ty) {
                    // SAFETY: as for the load. A store that faults is lost, as on a bus where nobody answers.
                    let _ = unsafe { raw::store(dst, value) };
                }
            )*
        }
    };
}

ops! {
    read_u8 write_u8 u8;
    read_u16 write_u16 u16;
    read_u32 write_u32 u32;
    read_u64 write_u64 u64;
}
