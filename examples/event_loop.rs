//! A monitor without a thread, driven by a VMM's own event loop (epoll). Faults, a timer that takes the BAR away and
//! gives it back, and the end are all events of one thread. Needs Linux 5.14 and a userfaultfd (`revoke probe` says how to
//! get one).
//!
//! `cargo run --example event_loop`

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use revocable_mmio::{AccessError, MapOptions, Mapping, Monitor, Region, Strategy};
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The events of the loop.
#[derive(Clone, Copy)]
enum Source {
    Faults = 1,
    DriverEnded = 2,
}

/// Faults served in one go, so that a storm of them does not starve the loop's other work.
const BUDGET: usize = 16;
const PAGES: usize = 256;
/// How often the BAR changes its state, and for how long all of it runs.
const TURN: Duration = Duration::from_millis(20);
const END: Duration = Duration::from_millis(90);

/// Stands for a guest's driver: touches one page after the other, in every state of the BAR, until it has seen both.
fn driver(bar: &Mapping, stop: &AtomicBool) -> (usize, u64) {
    let (mut done, mut refused) = (0usize, 0);
    while !stop.load(Ordering::Relaxed) || refused == 0 {
        match bar.write((done % PAGES) * 4096, done as u64) {
            Ok(()) => done += 1,
            Err(AccessError::Disabled { .. }) => {
                refused += 1;
                thread::sleep(Duration::from_micros(100));
            }
            Err(other) => panic!("{other}"),
        }
    }
    (done, refused)
}

fn main() -> Result<(), Box<dyn Error>> {
    let monitor = Monitor::manual().map_err(|e| format!("this example needs a userfaultfd: {e}"))?;
    // Zap is the strategy whose faults a monitor serves while the region is enabled.
    let region = Region::builder(PAGES * 4096).strategy(Strategy::Zap).monitor(monitor.clone()).build()?;
    let mapping = region.map(MapOptions::new())?;

    let ended = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&monitor, EpollEvent::new(EpollFlags::EPOLLIN, Source::Faults as u64))?;
    epoll.add(&ended, EpollEvent::new(EpollFlags::EPOLLIN, Source::DriverEnded as u64))?;

    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        let driver = scope.spawn(|| {
            let seen = driver(&mapping, &stop);
            let _ = ended.write(1);
            seen
        });
        let start = Instant::now();
        let mut toggle_at = TURN;
        let mut faults = 0;
        'running: loop {
            let mut events = [EpollEvent::empty(); 4];
            let timeout = toggle_at.saturating_sub(start.elapsed()).min(TURN);
            let n = epoll.wait(&mut events, EpollTimeout::try_from(timeout)?)?;
            for event in &events[..n] {
                if event.data() == Source::Faults as u64 {
                    faults += monitor.handle_ready(BUDGET)?;
                } else {
                    break 'running;
                }
            }
            if start.elapsed() >= toggle_at {
                // Both may be called from the loop that serves the faults: they go on serving while they wait.
                let what = if region.is_enabled() {
                    region.disable().map(|_| "revoked")
                } else {
                    region.enable().map(|_| "restored")
                };
                println!("{:<9} {faults} faults served so far", what?);
                toggle_at += TURN;
            }
            if start.elapsed() > END {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let (done, refused) = driver.join().map_err(|_| "the driver panicked")?;
        println!("{done} stores made, {refused} refused, {faults} faults served by the event loop");
        if faults == 0 || refused == 0 {
            return Err("the driver accessed nothing".into());
        }
        Ok(())
    })
}
