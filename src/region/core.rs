//! The part of a region that its mappings, pins and subscriptions keep.

use super::around::FaultAround;
use super::backing::BackingKind;
use super::not_restored::NotRestored;
use super::notify::Notifiers;
use super::owner::OwnerView;
use super::pin_table::PinTable;
use crate::monitor::Monitor;
use crate::protocol::Protocol;
use crate::protocol::async_fault::PendingFaults;
use crate::stats::RegionCounters;
use crate::sync::inside::Mutex;
use crate::sys::known::KnownFile;
use crate::view::Strategy;
use crate::window::Window;
use std::sync::Arc;

/// A region without its list of mappings; every mapping refers to this.
pub(crate) struct RegionCore {
    pub(crate) name: String,
    pub(crate) len: usize,
    pub(crate) page: usize,
    pub(crate) kind: BackingKind,
    pub(crate) file_offset: u64,
    /// `None`: dropped on revocation.
    pub(crate) file: Mutex<Option<Arc<KnownFile>>>,
    /// Withdraw: what is emptied.
    pub(crate) window: Option<Arc<Window>>,
    pub(crate) owner: OwnerView,
    pub(crate) strategy: Strategy,
    pub(crate) monitor: Option<Monitor>,
    pub(crate) fault_around: FaultAround,
    pub(crate) protocol: Protocol,
    pub(crate) pinned: PinTable,
    pub(crate) notifiers: Notifiers,
    pub(crate) not_restored: NotRestored,
    pub(crate) pending: Arc<PendingFaults>,
    pub(crate) counters: RegionCounters,
}
