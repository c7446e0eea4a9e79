//! Feature `safe-mmio`: an adapter for drivers that are written for the `safe-mmio` crate, over revocable memory.
#![expect(unsafe_code, reason = "raw accesses by the trait's own contract")]
// UNSAFETY: forwards safe-mmio's contract (valid, aligned, one access of the width) to the recoverable instructions.

use crate::raw;
use crate::raw::Primitive;
use safe_mmio::MmioOps;

/// Recoverable accesses for [`safe_mmio::set_mmio_ops!`], with which a program replaces the accesses of all pointers of the
/// crate safe-mmio (0.3.1 and later, its feature `custom-mmio`).
///
/// safe-mmio's accesses cannot return an error. A revoked one does what PCI does for a device that is not there, as in a
/// mapping with [`OnDisabled::AllOnes`](crate::OnDisabled): loads give all-ones, stores are lost. A driver that needs to
/// know asks the [`Region`](crate::Region), or uses [`Register`](crate::Register). Accesses to other memory work as ever,
/// and are recoverable too. On architectures other than x86-64 and aarch64 an access is one by raw pointer: a revoked one
/// is a signal. Not for mappings for [accessors only](crate::MapOptions::accessors_only), whose faults only the mapping
/// resolves.
///
/// ```
/// safe_mmio::set_mmio_ops!(revocable_mmio::RevocableOps); // once in the program
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RevocableOps;

macro_rules! ops {
    ($($read:ident $write:ident $ty:ident;)*) => {
        // Each is one access of its width, as the trait requires; one that faults has no effect.
        impl MmioOps for RevocableOps {
            $(
                unsafe fn $read(src: *const $ty) -> $ty {
                    // SAFETY: the caller's contract: valid and aligned. If the memory is revoked meanwhile, the load recovers.
                    unsafe { raw::load(src) }.unwrap_or($ty::ALL_ONES)
                }

                unsafe fn $write(dst: *mut $ty, value: $ty) {
                    // SAFETY: as for the load. A store that faults is lost, as on a bus where no device answers.
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
