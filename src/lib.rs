//! Device memory in user space that its owner can take away from every thread, system call, virtual CPU and
//! process at once, and give back.
//!
//! For authors of virtual machine monitors and user-space devices. The crate does for an emulated device what Linux's
//! vfio-pci does to a BAR when a guest clears the memory bit of PCI_COMMAND. A guest that turns a device's memory off while
//! something still uses it gets what the PCI specification says, not a dead VMM.
//!
//! # Example
//!
//! ```
//! use revocable_mmio::{AccessError, MapOptions, Region};
//!
//! let bar = Region::builder(64 << 10).name("bar0").build()?;
//! let mapping = bar.map(MapOptions::new())?;
//! mapping.write(0x10, 0xcafe_u32)?;
//!
//! bar.disable()?; // the guest clears PCI_COMMAND.MEM
//! assert!(matches!(mapping.read::<u32>(0x10), Err(AccessError::Disabled { .. })));
//! bar.owner().write(0x14, 1_u32)?; // the device keeps working
//!
//! bar.enable()?; // the same mapping, the same address, the same content
//! assert_eq!(mapping.read::<u32>(0x10)?, 0xcafe);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to start
//!
//! | to | use |
//! |---|---|
//! | make memory, take it away, give it back | [`Region`] ([`RegionBuilder`], [`Backing`]); [`disable`](Region::disable), [`enable`](Region::enable), [`reset`](Region::reset), each with a `try_` and a `_timeout` form |
//! | map it, and access it | [`Mapping`] ([`MapOptions`], [`OnDisabled`]), [`Register`], [`OwnerView`]; refused with [`AccessError`] |
//! | keep it enabled for a moment | [`Access`], from [`Mapping::try_access`]; [`Pin`] for hardware that uses its address |
//! | say how long an access may wait | [`Caller`], [`CancelToken`], [`fault`]; [`FaultQueue`] for faults that complete later |
//! | be told of a change | [`InvalidateNotifier`], [`Subscription`] |
//! | change several regions together | [`ResetGroup`] |
//! | take it away from other processes too | [`RegionBuilder::shared`], [`Region::share`], [`Strategy::Withdraw`] |
//! | emulate a PCI device, or revoke a real one's BARs | [`pci`]; the feature `vfio` |
//! | make one BAR of several parts that come and go: MSI-X holes, blobs, DAX windows | [`bar`] |
//! | have it in a guest's memory map | [`memslot`], [`ioeventfd`]; the feature `kvm` |
//! | use virtio queues, drivers | the features `vm-memory`, `safe-mmio` |
//! | start before a sandbox closes | [`init`](crate::init()) |
//! | choose who resolves faults | [`Monitor`], [`FaultAround`], [`Strategy`] |
//! | find out what this machine can do, and what happened | [`Support`], [`RegionStats`], [`MonitorStats`] |
//! | have signal handlers of your own | [`signal`] |
//!
//! The [`guide`] has a page for each of these. SECURITY.md in the repository has what is a boundary and what is not; SECCOMP.md the system calls of each kind of thread.
//!
//! # What it costs
//!
//! An access through a [`Mapping`] is one comparison and one instruction. [`Region::disable`] and [`Region::enable`] make
//! system calls for each mapping. They take microseconds where page tables can be moved aside ([`Strategy::Detach`]);
//! otherwise their cost grows with the number of mapped pages, and each of those pages faults once after `enable()`. Under
//! Detach a disabled region takes twice its address space. A disabled region needs no running thread. A shared monitor
//! thread starts with the first mapping whose faults it has to resolve.
//!
//! # How it works
//!
//! A [`Region`] is a file (a memfd, by default) with a state, a memory lock and a list of [`Mapping`]s. `disable()` waits
//! for guards and pins, takes the write side of the lock, sets the state, and takes the page tables of every mapping away,
//! by one of four [`Strategy`]s. The mapping that then stands in the range refuses accesses as [`OnDisabled`] says; it
//! needs no thread and no descriptor to do so. A [`Monitor`] or the faulting thread resolves faults under the read side of
//! the lock, so no fault can bring a page back after a revocation. The [`OwnerView`] is the device's own side, which no
//! revocation touches.
//!
//! The crate's accessors ([`Mapping::read`], [`Mapping::write`] and the others) recover from the fault of a revoked access.
//! They do so through handlers of SIGBUS and SIGSEGV that chain to the earlier handlers: see [`signal`]. On architectures
//! other than x86-64 and aarch64 they access the owner's view under the memory lock instead. Raw pointers from
//! [`Mapping::as_ptr`], system calls and vCPUs get what the policy says.
//!
//! # Guarantees
//!
//! 1. *Revoked means revoked.* Once `disable()` has returned, nothing reaches the memory through any mapping until `enable()`.
//! 2. *Nothing is lost.* Content survives. A store that returned before is in it; a store that failed is not.
//! 3. *Access never kills.* A revoked access through the crate's accessors is an `Err` or all-ones, never a signal that ends the process.
//! 4. *Bounded.* Revocation waits for guards and pins only, and names their holders; each wait has a form that does not wait.
//! 5. *No deadlock*, whatever a faulting thread holds.
//! 6. *NOWAIT never sleeps.*
//! 7. *Fails closed.* If anything dies or runs out half-way, the memory stays out of reach, and every waiter is woken.
//! 8. *Together or not at all*, for regions that are revoked as a group.
//!
//! Busy is not disabled: while [`Region::reset`] runs, accesses to an enabled region wait, and none is refused.
//!
//! Of a region that is [shared](RegionBuilder::shared) with other processes nothing reaches the memory in them either. Two things
//! are not covered: another process that maps the file of a region that is not shared has page tables of its own, and DMA
//! bypasses page tables.
//!
//! [`Support::probe`] finds out at run time what this kernel and this process can do. The [guide] has a page for each task.

#![cfg_attr(docsrs, feature(doc_cfg))]
// No threads of the standard library's: see sys/thread.rs.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(not(target_os = "linux"))]
compile_error!("revocable-mmio needs Linux: it is built on userfaultfd, mremap and membarrier");

#[macro_use]
mod trace;

// In the order of the floors, the lowest first; a file imports from lower floors only (tests/floors.rs).
mod sys;

mod stats;
mod sync;

mod users;

mod monitor;
mod raw;

mod protocol;

mod view;
mod window;

mod region;

mod access;

pub mod bar;
pub mod ioeventfd;
pub mod memslot;

#[cfg(feature = "kvm")]
#[cfg_attr(docsrs, doc(cfg(feature = "kvm")))]
pub mod kvm;
pub mod pci;
#[cfg(feature = "safe-mmio")]
mod safe_mmio;
#[cfg(feature = "vfio")]
#[cfg_attr(docsrs, doc(cfg(feature = "vfio")))]
pub mod vfio;
#[cfg(feature = "vm-memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "vm-memory")))]
pub mod vm_memory;

mod init;

pub mod guide;

pub use access::guard::Access;
pub use access::register::Register;
pub use init::{AllOnesTooLarge, InitError, Missing, Need, Needs, Ready, init};
pub use monitor::Monitor;
pub use monitor::error::MonitorError;
pub use protocol::async_fault::{Completion, FaultQueue, FaultToken, Submitted};
pub use protocol::caller::Caller;
pub use protocol::error::{Holders, RevokeError, SubmitError};
pub use protocol::fault;
pub use protocol::gate::HeldGuard;
pub use protocol::policy::OnDisabled;
pub use raw::signal;
pub use raw::{AtomicPrimitive, Primitive};
pub use region::access_error::{AccessError, CopyError};
pub use region::around::FaultAround;
pub use region::backing::{Backing, OnRevoke};
pub use region::error::{BuildError, FaultError, MapError, PinError, ProtectError};
pub use region::group::{GroupError, ResetGroup};
pub use region::mapping::{MapOptions, Mapping};
pub use region::notify::{InvalidateNotifier, NotifyError};
pub use region::owner::OwnerView;
pub use region::pin::Pin;
pub use region::share::{ShareAccess, ShareError};
pub use region::subscription::Subscription;
pub use region::{Region, RegionBuilder};
#[cfg(feature = "safe-mmio")]
#[cfg_attr(docsrs, doc(cfg(feature = "safe-mmio")))]
pub use safe_mmio::RevocableOps;
pub use stats::{BUCKETS, Latency, MonitorStats, RegionStats};
pub use sync::wait::CancelToken;
pub use sys::SysError;
pub use sys::feature::Feature;
#[cfg(revocable_inject)]
pub use sys::inject;
pub use sys::map::Prot;
pub use sys::probe::Support;
pub use sys::uffd::UffdSource;
pub use view::Strategy;

/// The README's example, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
