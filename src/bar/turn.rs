//! The turn to change a BAR: its state, its areas, or where the guest has it.
//!
//! One thread has it at a time, and runs users' code with it. What must not wait for it (a destructor, which may run inside
//! of that code) leaves a mark. Every holder carries the marks out at its end, and looks once more when it has given the
//! turn back: so a mark is carried out by the thread that left it, or by one that had the turn then.

use super::shared::Shared;
use crate::protocol::error::{Holders, RevokeError};
use crate::sync::wait::Patience;
use crate::users::turn::TurnGuard;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

/// The turn. Its holder alone changes the BAR; at its end what was marked meanwhile is carried out.
pub(crate) struct AreasTurn<'a> {
    areas: &'a Shared,
    own: Option<TurnGuard<'a>>,
}

impl Shared {
    /// Takes the turn; waits as long as `patience` allows, unless its holder may be waiting for the caller.
    pub(crate) fn take_turn(&self, patience: Patience) -> Result<AreasTurn<'_>, RevokeError> {
        if self.is_inherited() {
            return Err(RevokeError::Forked);
        }
        let members = self.members();
        if self.turn.is_caller() || members.iter().any(|member| member.protocol.is_changed_by_caller()) {
            return Err(RevokeError::Reentrant);
        }
        if let Some(turn) = self.try_turn() {
            return Ok(turn);
        }
        let guards = members.iter().map(|member| member.protocol.gate.held_by_caller()).sum();
        if guards > 0 {
            return Err(RevokeError::WouldDeadlock { guards });
        }
        let since = Instant::now();
        let own = self.turn.take(patience).ok_or_else(|| RevokeError::gave_up(patience, since, Holders::default()))?;
        Ok(AreasTurn { areas: self, own: Some(own) })
    }

    /// Takes the turn if it is free.
    pub(super) fn try_turn(&self) -> Option<AreasTurn<'_>> {
        self.turn.try_take().map(|own| AreasTurn { areas: self, own: Some(own) })
    }

    /// Has a mark carried out that the caller has just left: by this thread, or by the one that has the turn.
    pub(super) fn settle(&self) {
        // SeqCst: either the try sees the turn given back, or the one who gives it back sees the mark.
        fence(Ordering::SeqCst);
        drop(self.try_turn());
    }
}

impl Drop for AreasTurn<'_> {
    fn drop(&mut self) {
        loop {
            self.areas.carry_out_marks();
            drop(self.own.take());
            // SeqCst: partner of the one in `settle`.
            fence(Ordering::SeqCst);
            if !self.areas.has_marks() {
                return;
            }
            match self.areas.turn.try_take() {
                Some(again) => self.own = Some(again),
                // Its holder has not ended yet, and will see the marks.
                None => return,
            }
        }
    }
}
