//! The last seconds as a strip: what each actor's accesses got, tenth by tenth.

use super::cast::Counts;
use super::scene::Scene;
use super::screen::{Look, NAME};
use ratatui::text::{Line, Span};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(100);
const STEPS_A_SECOND: usize = 10;
/// More than any terminal is wide.
const MOST: usize = 1000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// No access ended, and none waits.
    Idle,
    Reached,
    Refused,
    /// Within one step.
    Both,
    Waits,
}

impl Mark {
    fn glyph(self) -> char {
        match self {
            Mark::Idle => ' ',
            Mark::Reached => '█',
            Mark::Refused => '×',
            Mark::Both => '▒',
            Mark::Waits => '~',
        }
    }
}

pub(super) struct Strip {
    /// Oldest first; the region's mark, then one for each actor.
    steps: VecDeque<Vec<Mark>>,
    counted: Vec<Counts>,
    changes: u64,
    next: Instant,
}

impl Strip {
    pub(super) fn new(scene: &Scene) -> Self {
        let counted = scene.actors.iter().map(|actor| actor.counts()).collect();
        Self { steps: VecDeque::new(), counted, changes: 0, next: Instant::now() + STEP }
    }

    /// Adds a step, if it is time.
    pub(super) fn look(&mut self, scene: &Scene) {
        if Instant::now() < self.next {
            return;
        }
        self.next += STEP;
        let stats = scene.region.stats();
        let changes = stats.disables + stats.enables;
        let region = match (scene.is_busy(), scene.region.is_enabled()) {
            _ if changes > self.changes + 1 => Mark::Both,
            (true, _) => Mark::Waits,
            (false, true) => Mark::Reached,
            (false, false) => Mark::Refused,
        };
        self.changes = changes;
        let mut step = vec![region];
        for (actor, before) in scene.actors.iter().zip(&mut self.counted) {
            let counts = actor.counts();
            let new = counts - *before;
            *before = counts;
            step.push(match (new.reached > 0, new.refused > 0) {
                _ if actor.waiting().is_some() => Mark::Waits,
                (true, true) => Mark::Both,
                (true, false) => Mark::Reached,
                (false, true) => Mark::Refused,
                (false, false) => Mark::Idle,
            });
        }
        self.steps.push_back(step);
        if self.steps.len() > MOST {
            self.steps.pop_front();
        }
    }

    pub(super) fn title(cells: usize) -> String {
        let seconds = cells / STEPS_A_SECOND;
        format!(" the last {seconds} s: █ enabled, reached  × disabled, refused  ▒ both  ~ busy, waits ")
    }

    /// A line for the region and one for each actor. Once they are full, the oldest steps leave on the left.
    pub(super) fn lines(&self, scene: &Scene, cells: usize, look: &Look) -> Vec<Line<'static>> {
        let names = std::iter::once("the region").chain(scene.actors.iter().map(|actor| actor.role.name()));
        let shown = self.steps.len().min(cells);
        let steps: Vec<_> = self.steps.iter().skip(self.steps.len() - shown).collect();
        let line = |(row, name): (usize, &str)| {
            let mut spans = vec![Span::raw(format!("{name:<NAME$}"))];
            for run in steps.chunk_by(|a, b| a[row] == b[row]) {
                let mark = run[0][row];
                let style = match mark {
                    Mark::Reached => look.good,
                    Mark::Refused => look.bad,
                    Mark::Idle | Mark::Both | Mark::Waits => look.wait,
                };
                spans.push(Span::styled(String::from_iter(run.iter().map(|_| mark.glyph())), style));
            }
            Line::from(spans)
        };
        names.enumerate().map(line).collect()
    }
}
