//! The guide: how to put the crate into a VMM or a user-space device, a page for each task.
//!
//! Each page's code is compiled and run as a test. The programs in `examples/` are longer, to be copied.
//!
//! | you | page | example |
//! |---|---|---|
//! | choose | [which strategy, which policy](choosing) | `quickstart`, `vfio_bar` |
//! | emulate a PCI device | [a BAR in the exit loop](exit_loop) | `mmio_dispatch` |
//! | | [your own configuration space](own_config_space) | `hot_unplug` |
//! | | [a BAR of several parts](areas): MSI-X holes, blobs, DAX, sparse BARs | `blob_window` |
//! | run guests | [memslots that follow the state](memslots) (feature `kvm`) | `kvm_bar` |
//! | | [virtio and vm-memory](virtio) (feature `vm-memory`) | `virtio_bar` |
//! | let others reach the memory | [DMA and IOMMUs](dma) | |
//! | | [peers and vfio-user](peers) | `vfio_user`, `guardian` |
//! | have an event loop | [event loops and monitors](event_loops) | `event_loop`, `async_faults` |
//! | have handlers, filters, jails | [signals of your own](signals) | |
//! | | [sandboxes and jails](sandboxes) | |
//! | save and restore | [snapshots and migration](snapshots) | |
//! | run it | [what can go wrong](errors) | |
//! | | [kernels and privileges](kernels) | `revoke probe` |
//! | | [tracing events](tracing) | |
//! | | [what it costs](costs) | `revoke latency` |
//!
//! The fault flags that the review of the vfio-pci patch was about are in the module [`fault`](crate::fault); the example
//! `retry_semantics` makes the review's table by running it.

#[doc = include_str!("docs/areas.md")]
pub mod areas {}

#[doc = include_str!("docs/choosing.md")]
pub mod choosing {}

#[doc = include_str!("docs/costs.md")]
pub mod costs {}

#[doc = include_str!("docs/dma.md")]
pub mod dma {}

#[doc = include_str!("docs/errors.md")]
pub mod errors {}

#[doc = include_str!("docs/event_loops.md")]
pub mod event_loops {}

#[doc = include_str!("docs/exit_loop.md")]
pub mod exit_loop {}

#[doc = include_str!("docs/kernels.md")]
pub mod kernels {}

#[cfg_attr(feature = "kvm", doc = include_str!("docs/memslots.md"))]
#[cfg_attr(not(feature = "kvm"), doc = "Memslots: this page comes with the feature `kvm`.")]
pub mod memslots {}

#[doc = include_str!("docs/own_config_space.md")]
pub mod own_config_space {}

#[doc = include_str!("docs/peers.md")]
pub mod peers {}

#[doc = include_str!("docs/sandboxes.md")]
pub mod sandboxes {}

#[doc = include_str!("docs/signals.md")]
pub mod signals {}

#[doc = include_str!("docs/snapshots.md")]
pub mod snapshots {}

#[doc = include_str!("docs/tracing.md")]
pub mod tracing {}

#[cfg_attr(feature = "vm-memory", doc = include_str!("docs/virtio.md"))]
#[cfg_attr(not(feature = "vm-memory"), doc = "Virtio: this page comes with the feature `vm-memory`.")]
pub mod virtio {}
