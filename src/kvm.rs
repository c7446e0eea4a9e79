//! Feature `kvm`: [`memslot`](crate::memslot) for KVM, over the crates kvm-ioctls and kvm-bindings.
//!
//! [`SetMemslot`] and [`SetIoEventFd`](crate::ioeventfd::SetIoEventFd) are implemented for `VmFd`, and an [`ExitHandler`] takes what `VcpuFd::run` returns. What happens to the
//! guest's accesses is described in [`memslot`](crate::memslot).
//!
//! # How KVM exits at revoked memory
//!
//! | machine | revoked page of a kept slot (policy `Sigbus`) | no slot | an instruction that KVM does not emulate, no slot |
//! |---|---|---|---|
//! | hardware nested paging (EPT, NPT) | `KVM_RUN` fails with EFAULT, `exit_reason` means nothing, no address, the instruction not executed | `KVM_EXIT_MMIO` | `KVM_EXIT_INTERNAL_ERROR` |
//! | the same, with memory-fault exits | `KVM_EXIT_MEMORY_FAULT` with the address; no kernel up to 7.2 does so for an ordinary slot | | |
//! | KVM that emulates the access (nested without EPT) | `KVM_EXIT_MMIO`, or `KVM_EXIT_INTERNAL_ERROR` | `KVM_EXIT_MMIO` | `KVM_EXIT_INTERNAL_ERROR` |
//!
//! All are handled. The tests run on whatever machine they find and say which it was.
//!
//! # Interrupting a vCPU
//!
//! The handler's waits end when its [`CancelToken`](crate::CancelToken) is cancelled; `KVM_RUN` ends with EINTR on a
//! signal. A VMM that kicks a vCPU does both. A mapping of policy [`OnDisabled::Block`](crate::OnDisabled::Block) is
//! refused: a vCPU that waits in a page fault holds up every change of the guest's memory map.
//!
//! # Example
//!
//! ```no_run
//! use revocable_mmio::kvm::{ExitHandler, Handled, Memslots, Retention, WhenDisabled};
//! use revocable_mmio::{CancelToken, MapOptions, OnDisabled, Region};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = Arc::new(kvm_ioctls::Kvm::new()?.create_vm()?);
//! let mut vcpu = vm.create_vcpu(0)?;
//! let bar = Region::builder(64 << 10).name("bar0").build()?;
//! let slots = Memslots::new(vm);
//! slots.on_error(|error| eprintln!("the guest's BAR is slow now: {error}"));
//! let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(OnDisabled::AllOnes))?);
//! let slot = slots.add(1, 0xe000_0000, mapping, Retention::default())?;
//!
//! let mut exits = ExitHandler::new(slots, WhenDisabled::UnsupportedRequest, CancelToken::new());
//! loop {
//!     match exits.handle(vcpu.run())? {
//!         Handled::Reenter => {}
//!         Handled::Again => drop(exits.again(&mut vcpu)?),
//!         Handled::Cancelled => break,
//!         Handled::Other(exit) => println!("the VMM's own: {exit:?}"),
//!     }
//! }
//! slot.move_to(0xe800_0000)?; // the guest has written the BAR's address
//! # Ok(())
//! # }
//! ```

mod exit;
mod ioeventfd;
mod vm;

pub use crate::memslot::{
    ExitError, Memslot, MemslotError, MemslotStats, Memslots, Retention, SetMemslot, SlotMemory, WhenDisabled,
};
pub use exit::{ExitHandler, Handled};
