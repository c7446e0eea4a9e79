//! The areas of a BAR in a guest's memory map.
//!
//! All of it is called by the holder of the BAR's turn. The virtual machine is users' code: it is called under no lock, and
//! from inside of it only marks can be left.

use super::area_core::{AreaCore, Piece};
use super::error::BarError;
use crate::memslot::{Memslot, MemslotError, Memslots, Retention};
use crate::protocol::policy::OnDisabled;
use crate::region::mapping::{MapOptions, Mapping};
use crate::sync::inside::Mutex;
use crate::sys::page_size;
use crate::users::Calling;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The memslots of a BAR.
pub(super) struct Guest {
    slots: Memslots,
    retention: Retention,
    place: Mutex<Place>,
    /// All slots are to be taken out by the holder of the turn.
    leaving: AtomicBool,
    /// A slot was taken out whose log was on.
    log_lost: AtomicBool,
}

struct Place {
    /// Where the guest has the BAR.
    base: Option<u64>,
    /// The numbers that no slot has, the next one last.
    free: Vec<u32>,
    /// Their areas were removed from inside of the virtual machine's own call for the slot, at whose end it goes. Until then
    /// its number is not free.
    going: Vec<Memslot>,
    log_dirty: bool,
}

impl Guest {
    pub(super) fn new(slots: Memslots, numbers: Range<u32>, retention: Retention) -> Self {
        let place =
            Mutex::new(Place { base: None, free: numbers.rev().collect(), going: Vec::new(), log_dirty: false });
        Self { slots, retention, place, leaving: AtomicBool::new(false), log_lost: AtomicBool::new(false) }
    }

    /// Maps parts of a new area, and adds their memslots; or does nothing.
    pub(super) fn put_in(&self, area: &AreaCore, parts: &[Range<u64>]) -> Result<(), BarError> {
        self.collect_gone();
        let mapped = parts.iter().map(|part| {
            let mapping = Arc::new(self.map(area, part)?);
            Ok(Piece { at: part.start, mapping, number: None, memslot: None })
        });
        let mut pieces = mapped.collect::<Result<Vec<_>, BarError>>()?;
        let base = {
            let mut place = self.place.lock();
            let (needed, left) = (pieces.len(), place.free.len());
            if needed > left {
                return Err(BarError::OutOfMemslots { needed, left });
            }
            pieces.iter_mut().for_each(|piece| piece.number = place.free.pop());
            place.base
        };
        let done = base.map_or(Ok(()), |base| pieces.iter_mut().try_for_each(|piece| self.add(piece, base)));
        if done.is_err() {
            self.drop_pieces(pieces);
            return done;
        }
        *area.pieces.lock() = pieces;
        Ok(())
    }

    fn map(&self, area: &AreaCore, part: &Range<u64>) -> Result<Mapping, BarError> {
        let policy = if self.retention == Retention::Keep { OnDisabled::Sigbus } else { OnDisabled::AllOnes };
        // Inside of a region, whose length is one of an address space.
        let bytes = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
        let options = MapOptions::new().on_disabled(policy);
        let options = options.offset(bytes(part.start - area.range.start)).len(bytes(part.end - part.start));
        let options = if area.region.shared.writable { options } else { options.read_only() };
        Ok(area.region.map(options)?)
    }

    fn add(&self, piece: &mut Piece, base: u64) -> Result<(), BarError> {
        let _calling = Calling::of(self);
        let (number, log_dirty) = {
            let mut place = self.place.lock();
            let number = piece.number.or_else(|| place.free.pop());
            (number.ok_or(BarError::OutOfMemslots { needed: 1, left: 0 })?, place.log_dirty)
        };
        piece.number = Some(number);
        let too_high = || MemslotError::Unaligned { gpa: base, page: page_size() };
        let gpa = base.checked_add(piece.at).ok_or_else(too_high)?;
        let slot = self.slots.add(number, gpa, Arc::clone(&piece.mapping), self.retention)?;
        let logs = if log_dirty { slot.log_dirty(true) } else { Ok(()) };
        piece.memslot = Some(slot);
        // It must not stay without the log: what the guest stores there would be told nowhere.
        logs.inspect_err(|_| self.remove_for_good(piece)).map_err(BarError::from)
    }

    /// Takes a piece's slot out. On an error it stays.
    fn remove(&self, piece: &mut Piece) -> Result<(), MemslotError> {
        let _calling = Calling::of(self);
        let Some(slot) = &mut piece.memslot else { return Ok(()) };
        slot.remove()?;
        if slot.take_log_lost() {
            self.log_lost.store(true, Ordering::Release);
        }
        let slot = piece.memslot.take();
        if slot.as_ref().is_some_and(Memslot::is_going) {
            piece.number = None;
            self.place.lock().going.extend(slot);
        }
        Ok(())
    }

    /// Gives back the numbers of slots that went later than their areas.
    fn collect_gone(&self) {
        let gone: Vec<_> = {
            let mut place = self.place.lock();
            let (going, gone) = std::mem::take(&mut place.going).into_iter().partition(Memslot::is_going);
            place.going = going;
            gone
        };
        // Dropped under no lock, before another slot has its number.
        let numbers: Vec<_> = gone.into_iter().map(|slot| slot.slot()).collect();
        self.place.lock().free.extend(numbers);
    }

    /// Takes a piece's slot out, whatever it takes: one that cannot be taken out keeps its number and its address range.
    fn remove_for_good(&self, piece: &mut Piece) {
        if self.remove(piece).is_err() {
            let _calling = Calling::of(self);
            let tried_again = piece.memslot.take().map(Memslot::end);
            match tried_again {
                Some(Some(log_lost)) => self.log_lost.fetch_or(log_lost, Ordering::AcqRel),
                _ => std::mem::take(&mut piece.number).is_some(),
            };
        }
    }

    fn drop_pieces(&self, mut pieces: Vec<Piece>) {
        pieces.iter_mut().for_each(|piece| self.remove_for_good(piece));
        self.place.lock().free.extend(pieces.iter().rev().filter_map(|piece| piece.number));
    }

    /// Takes an area out of the guest's memory map, or what can be of it.
    pub(super) fn take_out(&self, area: &AreaCore) -> Result<(), BarError> {
        let mut pieces = std::mem::take(&mut *area.pieces.lock());
        match pieces.iter_mut().try_for_each(|piece| self.remove(piece)) {
            Ok(()) => self.drop_pieces(pieces),
            Err(e) => {
                *area.pieces.lock() = pieces;
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Takes an area out, whatever it takes.
    pub(super) fn give_up(&self, area: &AreaCore) {
        let pieces = std::mem::take(&mut *area.pieces.lock());
        self.drop_pieces(pieces);
    }

    /// Where the guest has the BAR.
    pub(super) fn base(&self) -> Option<u64> {
        self.place.lock().base
    }

    /// Leaves the mark that all slots are to be taken out.
    pub(super) fn mark_leaving(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    pub(super) fn leave_if_marked(&self, areas: &[Arc<AreaCore>]) {
        if self.leaving.swap(false, Ordering::Relaxed) {
            self.take_all_out(areas);
        }
    }

    pub(super) fn take_all_out(&self, areas: &[Arc<AreaCore>]) {
        self.place.lock().base = None;
        let _ = each(areas, |piece| {
            self.remove_for_good(piece);
            Ok::<_, BarError>(())
        });
    }

    /// Puts every slot where it is to be. On an error there is none.
    pub(super) fn put_at(&self, areas: &[Arc<AreaCore>], base: u64, size: u64) -> Result<(), BarError> {
        let before = self.place.lock().base.replace(base);
        if before.is_some_and(|before| before != base && before.abs_diff(base) < size) {
            // One would be moved to where another is.
            self.take_all_out(areas);
            self.place.lock().base = Some(base);
        }
        let moved = each(areas, |piece| match &piece.memslot {
            Some(slot) => {
                let _calling = Calling::of(self);
                let gpa = base.checked_add(piece.at);
                let page = page_size();
                let gpa = gpa.ok_or(MemslotError::Unaligned { gpa: base, page })?;
                if slot.range().start == gpa { Ok(()) } else { Ok(slot.move_to(gpa)?) }
            }
            None => self.add(piece, base),
        });
        moved.inspect_err(|_| self.take_all_out(areas))
    }

    pub(super) fn log_dirty(&self, areas: &[Arc<AreaCore>], on: bool) -> Result<(), BarError> {
        let before = std::mem::replace(&mut self.place.lock().log_dirty, on);
        let set = |on| {
            each(areas, |piece| {
                let _calling = Calling::of(self);
                piece.memslot.as_ref().map_or(Ok(()), |slot| slot.log_dirty(on))
            })
        };
        let done = set(on);
        if done.is_err() {
            self.place.lock().log_dirty = before;
            let _ = set(before);
        }
        Ok(done?)
    }

    pub(super) fn take_log_lost(&self, areas: &[Arc<AreaCore>]) -> bool {
        // AcqRel: pairs with the store after a removal.
        let mut lost = self.log_lost.swap(false, Ordering::AcqRel);
        for area in areas {
            let pieces = area.pieces.lock();
            pieces.iter().filter_map(|piece| piece.memslot.as_ref()).for_each(|slot| lost |= slot.take_log_lost());
        }
        lost
    }

    pub(super) fn retry(&self, areas: &[Arc<AreaCore>]) -> Result<(), BarError> {
        let base = self.place.lock().base;
        let mut first = Ok(());
        let _ = each(areas, |piece| {
            let tried = match (&piece.memslot, base) {
                (Some(slot), _) => {
                    let _calling = Calling::of(self);
                    slot.retry().map_err(BarError::from)
                }
                (None, Some(base)) => self.add(piece, base),
                (None, None) => Ok(()),
            };
            if first.is_ok() {
                first = tried;
            }
            Ok::<_, BarError>(())
        });
        first
    }
}

/// Does it for every piece of every area, until one fails. The user's code that runs in it is under no lock.
fn each<E>(areas: &[Arc<AreaCore>], mut run: impl FnMut(&mut Piece) -> Result<(), E>) -> Result<(), E> {
    areas.iter().try_for_each(|area| {
        let mut pieces = std::mem::take(&mut *area.pieces.lock());
        let done = pieces.iter_mut().try_for_each(&mut run);
        *area.pieces.lock() = pieces;
        done
    })
}
