//! Memslots: a region's mapping as guest memory of a virtual machine, and what comes of a vCPU's access to it.
//!
//! A [`Memslot`] puts a mapping into the guest's physical address space and follows the region's state. [`Exits`] says what
//! to do when a vCPU exits at memory that is away: the access itself once the region is enabled, a PCI Unsupported Request,
//! or an error for the VMM. Neither knows a hypervisor: a VMM implements [`SetMemslot`] for its own and calls the method of
//! [`Exits`] that fits the exit. For KVM feature `kvm` has both. The guide has a page on
//! [memslots](crate::guide::memslots).
//!
//! # While the region is disabled
//!
//! | | [`Retention::AllOnes`] (the default) | [`Retention::Remove`] (what QEMU does) | [`Retention::Keep`], policy `Sigbus` (what Firecracker does) |
//! |---|---|---|---|
//! | a guest load | reads ones | exits with its address | exits; whether with an address depends on the machine |
//! | a guest store | is lost. The guest may read it back until `enable()` | exits with address and data | as a load |
//! | SSE, AVX, x87 and other instructions that KVM does not emulate | work | [`Exits::internal_error`]: the slot comes back with all-ones memory, or [`ExitError::NotEmulated`]. KVM takes some for others (AVX for LDS): an exception in the guest | wait or fail as others; as an Unsupported Request, as with Remove |
//! | [`WhenDisabled::Wait`] and `Fail` | no effect: there is no exit | per access | per access; of several such slots that are away together the wait ends with the first, and an error may not know which |
//! | cost of `disable()` and `enable()` | none | two changes of the memory map, each waits for a grace period of KVM's (SRCU) | none |
//! | the slot's dirty log | stays | is lost with the slot ([`Memslot::take_log_lost`]) | stays, unless an exit takes the slot out |
//!
//! AllOnes is the default: no instruction of the guest can end the virtual machine, and nothing waits. Choose Remove to
//! see the guest's accesses to disabled memory. Its price is KVM's grace periods: with a vCPU that has just run, a
//! `disable()` and `enable()` of a 64 KiB BAR took 12 ms with Remove and 25 us with Keep (median of `benches/kvm.rs`; Linux
//! 6.18, 2 virtual CPUs, nested without EPT).
//!
//! Either way the guest cannot reach revoked memory: the kernel drops a mapping's pages from the guest's page tables with
//! those of the process (mmu notifiers). The memslot only decides how the access ends.
//!
//! # During a reset
//!
//! Every slot stays, and guest accesses wait for the end of the reset, whatever instruction makes them: in the kernel,
//! inside `KVM_RUN`, or in [`Exits`] where the machine exits. A vCPU that waits in the kernel is not interrupted by a token;
//! up to Linux 6.1 not by a signal either. And a change of the guest's memory map waits for that vCPU: a reset's callback
//! must not make one, not for other memory either.
//!
//! # A memslot that cannot follow
//!
//! [`Memslots::add`] tries the slot in any state, so that a refusal is its error. If a later `enable()` cannot install the
//! slot, the memory is enabled all the same, and guest accesses exit and are made on the guest's behalf;
//! [`Memslots::on_error`] is told before `enable()` returns, and [`Memslot::retry`] tries again.

mod access;
mod core;
mod error;
mod exit;
mod retention;
mod set;
mod slot;
mod stats;
mod vm;

pub(crate) use access::BusAccess;
pub use error::{ExitError, MemslotError};
pub use exit::{Answer, Exits, WhenDisabled};
pub use retention::Retention;
pub use set::Memslots;
pub use slot::Memslot;
pub use stats::MemslotStats;
pub use vm::{SetMemslot, SlotMemory};
