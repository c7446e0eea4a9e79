//! Accesses to memory that may be revoked at any moment.

mod bulk;
pub(crate) mod primitive;
pub(crate) mod raw;

// Here, and nowhere else, an architecture is picked; its file is `arch` to the others.

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
mod x86_64;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
use x86_64 as arch;

#[cfg(all(target_arch = "aarch64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
mod aarch64;
#[cfg(all(target_arch = "aarch64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
use aarch64 as arch;

#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(any(revocable_portable, miri))
)))]
mod portable;
#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(any(revocable_portable, miri))
)))]
use portable as arch;

// For the architectures that recover.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(any(revocable_portable, miri))
))]
mod table;
