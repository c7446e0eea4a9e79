//! The region, its users, and the current act.

use super::cast::{Actor, Met, Role};
use super::script::Act;
use crate::device::{self, Way};
use crate::output::Failed;
use crate::spread::Spread;
use revocable_mmio::Region;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The pause between two accesses of an actor: short enough for the display, and long enough for a small machine.
const PAUSE: Duration = Duration::from_micros(300);
/// The offset in a page at which the driver counts.
const DRIVER_CELL: usize = 64;

pub(super) struct Scene {
    pub(super) region: Region,
    pub(super) actors: Vec<Actor>,
    /// How often the device itself has counted, through the owner's view, in every state of the region.
    pub(super) heartbeats: AtomicU64,
    /// How long the owner's calls took.
    pub(super) disables: Spread,
    pub(super) enables: Spread,
    /// The driver's last store that returned Ok, by page.
    stored: Vec<AtomicU64>,
    stop: AtomicBool,
    began: Instant,
}

impl Scene {
    pub(super) fn new(size: usize, way: Way) -> Result<Self, Failed> {
        let region = device::build("demo-bar0", size, way)?;
        let actors =
            Role::all(&region).into_iter().map(|role| Actor::new(role, &region)).collect::<Result<Vec<_>, _>>()?;
        let stored = (0..region.len() / region.page_size()).map(|_| AtomicU64::new(0)).collect();
        let scene = Self {
            region,
            actors,
            heartbeats: AtomicU64::new(0),
            disables: Spread::new(),
            enables: Spread::new(),
            stored,
            stop: AtomicBool::new(false),
            began: Instant::now(),
        };
        for page in 0..scene.pages() {
            scene.beat(page)?;
        }
        Ok(scene)
    }

    pub(super) fn pages(&self) -> usize {
        self.stored.len()
    }

    /// True if another process is among the actors.
    pub(super) fn has_peer(&self) -> bool {
        self.actors.iter().any(|actor| actor.role == Role::Peer)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Starts all actors.
    pub(super) fn start(self: &Arc<Self>) -> Result<Vec<JoinHandle<()>>, Failed> {
        let mut threads = Vec::new();
        for number in 0..self.actors.len() {
            let scene = Arc::clone(self);
            threads.push(thread::Builder::new().name(format!("actor {number}")).spawn(move || scene.play(number))?);
        }
        let scene = Arc::clone(self);
        let device = move || {
            for page in (0..scene.pages()).cycle() {
                if scene.stop.load(Ordering::Relaxed) || scene.beat(page).is_err() {
                    break;
                }
                thread::sleep(PAUSE);
            }
        };
        threads.push(thread::Builder::new().name("device".to_owned()).spawn(device)?);
        Ok(threads)
    }

    fn play(&self, number: usize) {
        let actor = &self.actors[number];
        let mut value = 0;
        for page in (0..self.pages()).cycle() {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let at = page * self.region.page_size();
            if actor.role == Role::Driver {
                if actor.act(at + DRIVER_CELL, value + 1).reached() {
                    value += 1;
                    self.stored[page].store(value, Ordering::Relaxed);
                }
            } else {
                actor.act(at, 0);
            }
            thread::sleep(PAUSE);
        }
    }

    /// The device counts on one of its pages.
    fn beat(&self, page: usize) -> Result<(), Failed> {
        let n = self.heartbeats.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(self.region.owner().write(page * self.region.page_size(), n)?)
    }

    /// Performs an act of the script, and returns how long it took.
    pub(super) fn perform(&self, act: Act) -> Result<Duration, Failed> {
        let since = Instant::now();
        match act {
            Act::Watch => {}
            Act::Disable => self.disable()?,
            Act::Enable => self.enable()?,
            Act::Reset(busy) => self.region.reset(|_| thread::sleep(busy))?,
            Act::Flap(times) => {
                for _ in 0..times {
                    self.disable()?;
                    thread::sleep(Duration::from_millis(1));
                    self.enable()?;
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Ok(since.elapsed())
    }

    fn disable(&self) -> Result<(), Failed> {
        let since = Instant::now();
        self.region.disable()?;
        self.disables.record(since.elapsed());
        Ok(())
    }

    fn enable(&self) -> Result<(), Failed> {
        let since = Instant::now();
        self.region.enable()?;
        self.enables.record(since.elapsed());
        Ok(())
    }

    /// True if all wait, as they do during a reset. Another process does not.
    pub(super) fn is_busy(&self) -> bool {
        self.actors.iter().filter(|a| a.role != Role::Peer).all(|a| a.waiting().is_some())
    }

    /// Ends all actors, with the region enabled so that none waits for ever.
    pub(super) fn end(&self, cast: Vec<JoinHandle<()>>) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.region.enable();
        for thread in cast {
            let _ = thread.join();
        }
    }

    /// Checks that every store of the driver that returned Ok is in the region. Returns their number.
    pub(super) fn check_kept(&self) -> Result<u64, String> {
        for (page, stored) in self.stored.iter().enumerate() {
            let at = page * self.region.page_size() + DRIVER_CELL;
            let (stored, found) = (stored.load(Ordering::Relaxed), self.region.owner().read::<u64>(at));
            if found != Ok(stored) {
                return Err(format!("G2: the driver stored {stored:#x} at {at:#x}, the region has {found:x?}"));
            }
        }
        let driver = self.actors.iter().filter(|actor| actor.role == Role::Driver);
        Ok(driver.map(|actor| actor.counts().reached).sum())
    }

    /// The current result of an actor's accesses, in words.
    pub(super) fn gets(actor: &Actor) -> String {
        match (actor.waiting(), actor.last()) {
            (Some(waited), _) => format!("waits, {:.1} s so far", waited.as_secs_f64()),
            (None, Met::Nothing) => "-".to_owned(),
            (None, met) => met.text(),
        }
    }
}
