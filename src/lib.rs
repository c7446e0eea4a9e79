//! Device memory in user space that its owner can take away from every thread, system call, virtual CPU and
//! process at once, and give back.

#[cfg(not(target_os = "linux"))]
compile_error!("revocable-mmio needs Linux: it is built on userfaultfd, mremap and membarrier");

mod access;
mod backing;
mod error;
pub mod fault;
mod gate;
mod group;
mod mapping;
mod monitor;
mod notify;
mod owner;
pub mod pci;
mod pin;
mod protocol;
mod region;
mod resolve;
mod revoke;
pub mod signal;
mod stats;
mod sync;
mod sys;
mod wait;

pub use access::{AtomicPrimitive, Primitive};
pub use backing::{Backing, OnRevoke};
pub use error::{
    AccessError, BuildError, CopyError, FaultError, Holders, MapError, MonitorError, PinError, RevokeError,
};
pub use gate::HeldGuard;
pub use group::{GroupError, ResetGroup};
pub use mapping::{MapOptions, Mapping, OnDisabled};
pub use monitor::Monitor;
pub use notify::{InvalidateNotifier, NotifyError, Subscription};
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
