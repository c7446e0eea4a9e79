//! The part of a region that its mappings, pins and subscriptions keep.

use super::around::FaultAround;
use super::backing::BackingKind;
use super::not_restored::NotRestored;
use super::notify::Notifiers;
use super::owner::OwnerView;
use super::pin_table::PinTable;
use super::question::Question;
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
    /// False: the region can be read only.
    pub(crate) writable: bool,
    /// `None`: dropped on revocation.
    pub(crate) file: Mutex<Option<Arc<KnownFile>>>,
    /// Asks the device whether its memory is on.
    pub(crate) memory_enabled: Option<Question>,
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

impl RegionCore {
    /// True if the device says that it has turned its memory off. For a thread that holds no lock of the crate, and is not
    /// inside of it.
    pub(crate) fn is_off(&self) -> bool {
        let Some(question) = &self.memory_enabled else { return false };
        // A forked child's lock may be held for ever.
        if self.protocol.is_inherited() {
            return false;
        }
        // The file is kept for the time of the question, and no longer: see `retire`.
        let Some(file) = self.file.lock_quietly().clone() else { return false };
        let _inside = self.protocol.inside();
        question.says_off(&file)
    }
}
