//! Feature `tracing`: the events and spans that a subscriber gets.

use crate::support;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{MapOptions, Region, Strategy};
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Keeps every event as a line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(Level, String)>>>);

impl Lines {
    fn has(&self, level: Level, text: &str) -> bool {
        self.0.lock().expect("no panic").iter().any(|(l, line)| *l == level && line.contains(text))
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "revocable_mmio"
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut line = Line(format!("span {} ", span.metadata().name()));
        span.record(&mut line);
        self.0.lock().expect("no panic").push((*span.metadata().level(), line.0));
        span::Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().expect("no panic").push((*event.metadata().level(), line.0));
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn changes_faults_and_slow_guards_are_told() {
    support::start();
    // In a process of its own: the subscriber hears all of it.
    let ended = support::child::alone(|| {
        let lines = Lines::default();
        tracing::subscriber::set_global_default(lines.clone()).expect("the first");
        let region = Region::builder(1 << 16).name("bar7").strategy(Strategy::Zap).build().expect("zap");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        mapping.write::<u64>(0, 1).expect("enabled");
        assert!(lines.has(Level::TRACE, "message=fault region=bar7"), "{lines:?}", lines = lines.0);

        region.disable().expect("nothing is in the way");
        assert!(lines.has(Level::DEBUG, "span change region=bar7 to=Disabled"));
        assert!(lines.has(Level::DEBUG, "message=revoked region=bar7"));
        region.enable().expect("it comes back");
        assert!(lines.has(Level::DEBUG, "message=restored region=bar7"));
        region.reset(|_| ()).expect("a reset");
        assert!(lines.has(Level::DEBUG, "message=reset region=bar7"));
        assert!(!lines.has(Level::WARN, ""), "nothing was slow or degraded: {:?}", lines.0);

        let pin = region.pin(0..4096, FaultFlags::NOWAIT).expect("enabled");
        thread::scope(|scope| {
            scope.spawn(|| {
                support::eventually("it is told", || lines.has(Level::WARN, "message=slow guard pins=1"));
                drop(pin);
            });
            region.disable().expect("the pin goes");
        });
    });
    ended.well();
}
