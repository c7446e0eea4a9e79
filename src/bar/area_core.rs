//! An area, as the BAR and its handle know it.

use crate::memslot::Memslot;
use crate::region::Region;
use crate::region::mapping::Mapping;
use crate::sync::inside::Mutex;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A part of a BAR that is memory.
pub(crate) struct AreaCore {
    /// Which bytes of the BAR.
    pub(super) range: Range<u64>,
    pub(super) region: Region,
    /// To be removed by the holder of the turn.
    pub(super) leaving: AtomicBool,
    /// What the guest has of it. Changed by the holder of the turn; nothing is dropped under the lock.
    pub(super) pieces: Mutex<Vec<Piece>>,
}

/// A part of an area that is a memslot while the BAR has a guest address.
pub(super) struct Piece {
    /// Where in the BAR.
    pub(super) at: u64,
    pub(super) mapping: Arc<Mapping>,
    /// `None` if a slot could not be taken out, and has kept it.
    pub(super) number: Option<u32>,
    pub(super) memslot: Option<Memslot>,
}
