//! Accesses to memory that may be revoked at any moment.

#[cfg(all(target_arch = "aarch64", target_endian = "little", target_pointer_width = "64", not(any(revocable_portable, miri))))]
mod aarch64;
mod bulk;
#[cfg(any(
    revocable_portable,
    miri,
    not(target_pointer_width = "64"),
    not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")))
))]
mod portable;
pub(crate) mod primitive;
pub(crate) mod raw;
#[cfg(all(
    target_pointer_width = "64",
    any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little")),
    not(any(revocable_portable, miri))
))]
mod table;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(any(revocable_portable, miri))))]
mod x86_64;
