//! Feature `kvm`: a region's mapping as guest memory of a KVM virtual machine.
//!
//! A [`Memslot`] puts a mapping into the guest's physical address space and follows the region's state. An [`ExitHandler`]
//! translates the vCPU's exit at revoked memory into the right outcome: the access itself once the region is enabled, a PCI
//! Unsupported Request, or an error for the VMM.
//!
//! # The memslot while the region is disabled
//!
//! | | [`Retention::Remove`] (what QEMU does) | [`Retention::Keep`] (what Firecracker does) |
//! |---|---|---|
//! | a guest access exits as | `KVM_EXIT_MMIO`, with address and data | depends on the machine: see below |
//! | extra cost of `disable()` and `enable()` | two changes of the memory map, each waits for a grace period of KVM's (SRCU) and zaps the slot's shadow pages | none |
//! | an access while the region is busy (a reset) | waits in the exit handler, can be cancelled | waits in the kernel, inside `KVM_RUN` |
//! | the slot's dirty log | is lost with the slot | stays |
//!
//! Remove is the default: an access that has an address and data can be answered without decoding the guest's instruction,
//! and no vCPU ever waits inside the kernel. Its price is KVM's grace periods: with a vCPU that has just run, a `disable()`
//! and `enable()` of a 64 KiB BAR took 12 ms with Remove and 25 us with Keep (median of `benches/kvm.rs`; Linux 6.18, 2
//! virtual CPUs, nested without EPT). Keep suits a guest that switches its BARs often and hardly touches them while they
//! are off. If the guest does touch one and the result needs the address ([`WhenDisabled::UnsupportedRequest`]), the exit
//! handler takes the slot out.
//!
//! Either way the guest cannot reach revoked memory: the kernel drops a mapping's pages from the guest's page tables with
//! those of the process (mmu notifiers). The memslot only decides how the access exits.
//!
//! # What a kept slot's exit looks like
//!
//! | machine | revoked page of a kept slot |
//! |---|---|
//! | hardware nested paging (EPT, NPT) | `KVM_RUN` fails with EFAULT, `exit_reason` means nothing, no address, the instruction not executed |
//! | the same, with memory-fault exits | `KVM_EXIT_MEMORY_FAULT` with the address; no kernel up to 7.2 does so for an ordinary slot |
//! | KVM that emulates the access (nested without EPT) | `KVM_EXIT_MMIO` |
//!
//! All three are handled. The tests run on whatever machine they find and say which it was. EFAULT, which needs nested
//! paging, was seen over revoked memory on Linux 6.1, 6.12 and 7.x with emulated AMD-V; elsewhere the tests hand that exit
//! to the handler.
//!
//! # Interrupting a vCPU
//!
//! The handler's waits end when its [`CancelToken`](crate::CancelToken) is cancelled; `KVM_RUN` ends with EINTR on a
//! signal. A VMM that kicks a vCPU does both. A fault inside `KVM_RUN` of a kept slot cannot be interrupted while the
//! region is *busy*: up to Linux 6.1 it ends only with the reset, later a signal ends it. With Remove there is no such
//! wait. For the same reason a mapping of policy [`OnDisabled::Block`](crate::OnDisabled::Block) is refused here: a vCPU
//! that waits in a page fault holds up every change of the guest's memory map.
//!
//! # Example
//!
//! ```no_run
//! use revocable_mmio::kvm::{ExitHandler, Handled, Memslots, Retention, WhenDisabled};
//! use revocable_mmio::{CancelToken, MapOptions, Region};
//! use std::sync::Arc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vm = Arc::new(kvm_ioctls::Kvm::new()?.create_vm()?);
//! let mut vcpu = vm.create_vcpu(0)?;
//! let bar = Region::builder(64 << 10).name("bar0").build()?;
//! let slots = Memslots::new(vm);
//! let _slot = slots.add(1, 0xe000_0000, Arc::new(bar.map(MapOptions::new())?), Retention::Remove)?;
//!
//! let mut exits = ExitHandler::new(slots, WhenDisabled::UnsupportedRequest, CancelToken::new());
//! loop {
//!     match exits.handle(vcpu.run())? {
//!         Handled::Reenter => {}
//!         Handled::Cancelled => break,
//!         Handled::Other(exit) => println!("the VMM's own: {exit:?}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod error;
mod exit;
mod ioctl;
mod slot;

pub use error::{ExitError, MemslotError};
pub use exit::{ExitHandler, Handled, WhenDisabled};
pub use ioctl::SetMemslot;
pub use slot::{Memslot, MemslotStats, Memslots, Retention};
