//! Device memory in user space that its owner can take away from every thread, system call, virtual CPU and
//! process at once, and give back.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("revocable-mmio needs Linux: it is built on userfaultfd, mremap and membarrier");

#[macro_use]
mod trace;

mod access;
mod backing;
mod error;
pub mod fault;
mod gate;
#[cfg(feature = "kvm")]
#[cfg_attr(docsrs, doc(cfg(feature = "kvm")))]
pub mod kvm;
mod mapping;
mod monitor;
mod notify;
mod owner;
mod pin;
mod protocol;
mod region;
mod resolve;
mod revoke;
pub mod signal;
mod stats;
mod sync;
mod sys;
#[cfg(feature = "vm-memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "vm-memory")))]
pub mod vm_memory;
mod wait;

pub use access::{AtomicPrimitive, Primitive};
pub use backing::{Backing, OnRevoke};
pub use error::{
    AccessError, BuildError, CopyError, FaultError, Holders, MapError, MonitorError, PinError, RevokeError,
};
pub use gate::HeldGuard;
pub use mapping::{MapOptions, Mapping, OnDisabled};
pub use monitor::Monitor;
pub use notify::{InvalidateNotifier, Subscription};
pub use owner::OwnerView;
pub use pin::Pin;
pub use region::{FaultAround, Region, RegionBuilder};
pub use resolve::Caller;
pub use revoke::Strategy;
pub use stats::{BUCKETS, Latency, MonitorStats, RegionStats};
pub use sys::SysError;
#[cfg(revocable_inject)]
pub use sys::inject;
pub use sys::probe::{Feature, Support};
pub use sys::uffd::UffdSource;
pub use wait::CancelToken;
