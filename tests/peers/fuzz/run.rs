//! Carries a sequence out, and compares the results with the model's.

use super::model::{Answer, Model, PAGES, punched, truncated};
use super::op::{Op, Verb, line};
use crate::peer::Peer;
use crate::support::{self, raw};
use crate::{PAGE, SECRET, shared, untouched, withdraw, writable};
use revocable_mmio::{MapOptions, Mapping, OnDisabled, Region, RevokeError, ShareAccess};
use std::fs::File;
use std::time::Duration;

const LEN: usize = PAGES * PAGE;
/// madvise(2): DONTNEED, RANDOM, COLD, PAGEOUT, POPULATE_READ, POPULATE_WRITE, COLLAPSE.
const ADVICE: [u64; 7] = [4, 1, 20, 21, 22, 23, 25];

struct Real {
    region: Region,
    mapping: Mapping,
    window: File,
    peer: Peer,
}

/// Runs a sequence.
///
/// # Errors
/// The first result that is not the model's, and its operation.
pub(super) fn run(history: &[Op], policy: OnDisabled) -> Result<(), String> {
    let region = shared(LEN, policy);
    let neighbour = shared(LEN, policy);
    withdraw(&neighbour);
    let mapping = region.map(MapOptions::new()).map_err(|e| e.to_string())?;
    let window = File::from(region.share(ShareAccess::ReadOnly).map_err(|e| e.to_string())?);
    let mut real = Real { peer: peer(&region)?, window, region, mapping };
    let mut model = Model::new(policy);
    for op in history {
        let is = real.step(op);
        if is == Answer::Refused && op.verb == Verb::Disable {
            // A try found the file's lock held, by a thread that had not come to let go of it.
            continue;
        }
        let should = model.apply(op);
        if should != Answer::Any && is != should {
            return Err(format!("{} returned {is:x?}, not {should:x?}", line(op)));
        }
        real.is_as(&model).map_err(|why| format!("after {}: {why}", line(op)))?;
    }
    // Without the peer all is well again, and of another region nothing has changed.
    drop(real.peer);
    withdraw(&real.region);
    untouched(&real.region);
    real.region.enable().map_err(|e| e.to_string())?;
    if real.mapping.read(PAGE) != Ok(crate::word(SECRET)) {
        return Err("the content is not back".to_owned());
    }
    untouched(&neighbour);
    Ok(())
}

fn peer(region: &Region) -> Result<Peer, String> {
    Peer::new(writable(region), LEN).ok_or_else(|| "no C compiler".to_owned())
}

impl Real {
    fn step(&mut self, op: &Op) -> Answer {
        let Op { verb, page, value } = *op;
        let Self { region, mapping, peer, .. } = self;
        let at = page * PAGE;
        match verb {
            Verb::Disable => changed(match value % 3 {
                0 => region.disable(),
                1 => region.try_disable(),
                _ => region.disable_timeout(Duration::from_secs(30)),
            }),
            Verb::Enable => changed(region.enable()),
            Verb::Reset => match region.reset(|_| done(region.owner().write(at, value))) {
                Ok(stored) => stored,
                Err(e) => panic!("reset: {e}"),
            },
            Verb::OwnerStore => done(region.owner().write(at, value)),
            Verb::OwnerLoad => loaded(region.owner().read(at)),
            Verb::OwnStore => done(mapping.write(at, value)),
            Verb::OwnLoad => {
                let by_accessor = loaded(mapping.read(at));
                let plain = if at < LEN { loaded(raw::load64(support::addr(mapping) + at)) } else { Answer::Refused };
                if by_accessor == plain { plain } else { panic!("{by_accessor:x?} by accessor, {plain:x?} without") }
            }
            // Its mapping is as long as the region.
            Verb::Store | Verb::Load if at >= LEN => Answer::Refused,
            Verb::Store => told(&peer.ask(&format!("store a {at:#x} {value:#x}"))),
            Verb::Load => told(&peer.ask(&format!("load a {at:#x}"))),
            Verb::Truncate => returned(&peer.ask(&format!("truncate 0 {:#x}", truncated(op)))),
            Verb::Punch => returned(&peer.ask(&format!("punch 0 {at:#x} {:#x}", punched(op) * PAGE))),
            Verb::Write => returned(&peer.ask(&format!("pwrite 0 {at:#x} {value:#x}"))),
            Verb::Seal => returned(&peer.ask(&format!("seal 0 {}", 1 << (value % 6)))),
            Verb::Advise => {
                peer.ask(&format!("advise a {}", ADVICE[(value % 7) as usize]));
                Answer::Any
            }
            Verb::Lock => {
                peer.ask("lock a");
                Answer::Any
            }
            Verb::Remap => told(&peer.ask("remap a")),
            Verb::Map => told(&peer.ask("map a 0")),
            Verb::Fork => returned(&peer.ask("fork")),
            Verb::Again => {
                self.peer = self::peer(&self.region).expect("there was one");
                Answer::Any
            }
        }
    }

    /// The state, what is lost, the window's size, all that a peer reaches, and the withdrawn content.
    fn is_as(&mut self, model: &Model) -> Result<(), String> {
        let size = self.window.metadata().map_err(|e| e.to_string())?.len();
        let is = (self.region.is_enabled(), self.region.stats().lost, size);
        let should = (model.enabled, model.lost, model.size as u64);
        if is != should {
            return Err(format!("(enabled, bytes lost, the window's size) {is:?}, not {should:?}"));
        }
        for page in 0..PAGES {
            let is = told(&self.peer.ask(&format!("load a {:#x}", page * PAGE)));
            let should = model.load(page);
            if is != should {
                return Err(format!("a peer's load of page {page} gave {is:x?}, not {should:x?}"));
            }
            let kept = self.region.owner().read(page * PAGE);
            if !model.enabled && kept != Ok(model.vault[page]) {
                return Err(format!("page {page} of the withdrawn content is {kept:x?}, not {:x}", model.vault[page]));
            }
        }
        Ok(())
    }
}

fn changed(result: Result<bool, RevokeError>) -> Answer {
    match result {
        Ok(changed) => Answer::Changed(changed),
        Err(RevokeError::Busy(_)) => Answer::Refused,
        Err(e) => panic!("a change failed: {e}"),
    }
}

fn done<E>(result: Result<(), E>) -> Answer {
    result.map_or(Answer::Refused, |()| Answer::Done)
}

fn loaded<E>(result: Result<u64, E>) -> Answer {
    result.map_or(Answer::Refused, Answer::Value)
}

/// A peer's answer to an access.
fn told(answer: &str) -> Answer {
    let number = answer.strip_prefix("0x").map_or(answer.parse().ok(), |digits| u64::from_str_radix(digits, 16).ok());
    match (answer, number) {
        ("ok", _) => Answer::Done,
        (_, Some(value)) => Answer::Value(value),
        (fault, None) if fault.starts_with("SIGBUS BUS_ADRERR") => Answer::Refused,
        (other, None) => panic!("the peer says {other}"),
    }
}

/// A peer's answer to a system call.
fn returned(answer: &str) -> Answer {
    let known = ["0", "8", "EPERM", "EINVAL"].into_iter().find(|known| *known == answer);
    known.map_or_else(|| panic!("the peer says {answer}"), Answer::Call)
}
