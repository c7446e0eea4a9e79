//! Accesses: loads, stores and copies through a mapping that answer `Err` where a raw pointer would meet a signal.
//!
//! The fast path (`typed.rs`) is one comparison, which checks bounds and state together, and one instruction, which
//! recovers if it faults (`raw.rs` and the architectures' files). What a refused access answers, and who waits for
//! what, is out of line (`slow.rs`). On architectures without such instructions an access is made under the memory lock
//! (`locked.rs`).

mod bulk;
mod locked;
pub(crate) mod primitive;
pub(crate) mod raw;
mod slow;
mod typed;

pub use primitive::{AtomicPrimitive, Primitive};
pub(crate) use typed::{Kind, check};

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
