//! The demonstration as a live picture.

use super::cast::Actor;
use super::pagemap::PageMap;
use super::scene::Scene;
use super::script::{Act, SCRIPT};
use super::strip::Strip;
use crate::figures;
use crate::output::Failed;
use crate::spread::Spread;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const FRAME: Duration = Duration::from_millis(50);
const SMALLEST_WIDTH: u16 = 80;
/// Columns of an actor's name.
pub(super) const NAME: usize = 19;
/// With less the tail of the times is left out.
const WIDE: u16 = 90;
/// The log's lines that the script fills, and its border. What is left then goes to the page tables.
const LOG: u16 = 8;
/// The most lines for one mapping's page tables.
const MOST_LINES: u16 = 3;

/// The state of the script that the picture shows.
#[derive(Default)]
struct Caption {
    call: &'static str,
    why: &'static str,
    /// Newest last.
    log: VecDeque<String>,
}

/// Plays the script. The terminal is restored on return, whatever the result.
pub(super) fn play(scene: &Arc<Scene>, asked_to_end: &AtomicBool) -> Result<Vec<Value>, Failed> {
    let caption = Arc::new(Mutex::new(Caption::default()));
    let (command, commands) = mpsc::channel();
    let director = {
        let (scene, caption) = (Arc::clone(scene), Arc::clone(&caption));
        thread::Builder::new().name("director".to_owned()).spawn(move || direct(&scene, &caption, &commands))?
    };
    let mut terminal = ratatui::try_init()?;
    let drawn = draw_until_end(&mut terminal, scene, &caption, asked_to_end, &command, &director);
    ratatui::restore();
    // The director ends when its commands' sender is gone.
    drop(command);
    let directed = director.join().map_err(|_| "the director panicked")?;
    drawn?;
    directed?;
    Ok(Vec::new())
}

/// Plays the script until a key takes over, and then the acts of keys, until the sender is gone.
fn direct(scene: &Scene, caption: &Mutex<Caption>, commands: &mpsc::Receiver<Act>) -> Result<(), Failed> {
    let mut taken_over = None;
    for scenario in &SCRIPT {
        perform(scene, caption, scenario.act, scenario.why(scene.has_peer()))?;
        match commands.recv_timeout(scenario.then) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(act) => {
                taken_over = Some(act);
                break;
            }
        }
    }
    while let Some(act) = taken_over {
        perform(scene, caption, act, "by hand: q ends it")?;
        taken_over = commands.recv().ok();
    }
    Ok(())
}

fn perform(scene: &Scene, caption: &Mutex<Caption>, act: Act, why: &'static str) -> Result<(), Failed> {
    let at = scene.elapsed();
    let mut now = lock(caption);
    now.call = act.call();
    now.why = why;
    drop(now);
    let took = scene.perform(act)?;
    if act != Act::Watch {
        let mut now = lock(caption);
        now.log.push_back(format!("{:>5.1} s  {:<25} {:>8}", at.as_secs_f64(), act.call(), figures::duration(took)));
        if now.log.len() > 64 {
            now.log.pop_front();
        }
    }
    Ok(())
}

fn lock(caption: &Mutex<Caption>) -> std::sync::MutexGuard<'_, Caption> {
    caption.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn draw_until_end(
    terminal: &mut DefaultTerminal,
    scene: &Scene,
    caption: &Mutex<Caption>,
    asked_to_end: &AtomicBool,
    command: &mpsc::Sender<Act>,
    director: &thread::JoinHandle<Result<(), Failed>>,
) -> Result<(), Failed> {
    let look = Look::new();
    let mut strip = Strip::new(scene);
    let pages: Vec<_> = scene.actors.iter().map(|actor| actor.page_map(&scene.region).ok()).collect();
    let mut next = Instant::now();
    while !asked_to_end.load(Ordering::Relaxed) && !director.is_finished() {
        if Instant::now() >= next {
            strip.look(scene);
            terminal.draw(|frame| picture(frame, scene, &lock(caption), &pages, &strip, &look))?;
            next = Instant::now() + FRAME;
        }
        if !event::poll(next.saturating_duration_since(Instant::now()))? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        let act = match key.code {
            KeyCode::Char('q') | KeyCode::Esc => break,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => break,
            KeyCode::Char(' ') if scene.region.is_enabled() => Act::Disable,
            KeyCode::Char(' ') => Act::Enable,
            KeyCode::Char('r') => Act::Reset(Duration::from_secs(1)),
            _ => continue,
        };
        let _ = command.send(act);
    }
    Ok(())
}

/// Colours, unless NO_COLOR asks for none (no-color.org). The words say the same as the colours.
pub(super) struct Look {
    pub(super) good: Style,
    pub(super) bad: Style,
    pub(super) wait: Style,
    dim: Style,
    bold: Style,
}

impl Look {
    fn new() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let colour = |c| if plain { Style::new() } else { Style::new().fg(c) };
        Self {
            good: colour(Color::Green),
            bad: colour(Color::Red),
            wait: colour(Color::Yellow),
            dim: Style::new().add_modifier(Modifier::DIM),
            bold: Style::new().add_modifier(Modifier::BOLD),
        }
    }

    fn of(&self, actor: &Actor) -> Style {
        match (actor.waiting(), actor.last().reached()) {
            (Some(_), _) => self.wait,
            (None, true) => self.good,
            (None, false) => self.bad,
        }
    }
}

fn picture(
    frame: &mut Frame<'_>,
    scene: &Scene,
    caption: &Caption,
    pages: &[Option<PageMap>],
    strip: &Strip,
    look: &Look,
) {
    let area = frame.area();
    let rows = u16::try_from(scene.actors.len()).unwrap_or(5);
    let (w, h) = (SMALLEST_WIDTH, 2 * rows + 14);
    if area.width < w || area.height < h {
        let text = format!("{}x{} is too small: {w}x{h}, please (q ends)", area.width, area.height);
        frame.render_widget(Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true }), area);
        return;
    }
    let spare = area.height - h;
    let strip_height = if spare >= rows + 3 { rows + 3 } else { 0 };
    let lines = (1 + (3 + spare - strip_height).saturating_sub(LOG) / rows).min(MOST_LINES);
    let [state, met, tables, seconds, log, keys] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(rows + 4),
        Constraint::Length(lines * rows + 2),
        Constraint::Length(strip_height),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_state(frame, state, scene, caption, look);
    draw_met(frame, met, scene, look);
    draw_tables(frame, tables, scene, pages, lines.into(), look);
    let cells = usize::from(area.width) - 2 - NAME;
    let block = Block::bordered().title(Strip::title(cells));
    frame.render_widget(Paragraph::new(strip.lines(scene, cells, look)).block(block), seconds);
    draw_log(frame, log, scene, caption);
    let help = " q quit   space revoke or restore by hand   r reset";
    frame.render_widget(Paragraph::new(help).style(look.dim), keys);
}

fn draw_state(frame: &mut Frame<'_>, area: Rect, scene: &Scene, caption: &Caption, look: &Look) {
    let (word, style) = match (scene.is_busy(), scene.region.is_enabled()) {
        (true, _) => (" BUSY     ", look.wait),
        (false, true) => (" ENABLED  ", look.good),
        (false, false) => (" DISABLED ", look.bad),
    };
    let title = format!(
        " {}: {} of device memory, revoked by {} ",
        scene.region.name(),
        figures::bytes(scene.region.len()),
        scene.region.strategy()
    );
    let clock = format!(" {:.1} s ", scene.elapsed().as_secs_f64());
    let lines = vec![
        Line::from(vec![
            Span::styled(word, style.add_modifier(Modifier::BOLD | Modifier::REVERSED)),
            Span::raw("  "),
            Span::styled(caption.call, look.bold),
        ]),
        Line::from(caption.why),
    ];
    let block = Block::bordered().title(title).title(Line::from(clock).right_aligned());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_met(frame: &mut Frame<'_>, area: Rect, scene: &Scene, look: &Look) {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let count = |n: u64| right(figures::rounded(n));
    let heads = ["access", "gets now", "reached", "refused", "waited", "median", "99%"];
    let head =
        heads.into_iter().enumerate().map(|(i, name)| if i < 2 { Cell::from(name) } else { right(name.to_owned()) });
    let mut rows: Vec<Row<'_>> = Vec::new();
    for actor in &scene.actors {
        let counts = actor.counts();
        let within = |share| right(actor.took().quantile(share).map_or_else(|| "-".to_owned(), figures::duration));
        rows.push(Row::new(vec![
            Cell::from(actor.role.name()),
            Cell::from(Span::styled(Scene::gets(actor), look.of(actor))),
            count(counts.reached),
            count(counts.refused),
            count(counts.waited),
            within(0.5),
            within(0.99),
        ]));
    }
    let beats = scene.heartbeats.load(Ordering::Relaxed);
    rows.push(Row::new(vec![
        Cell::from("owner's view"),
        Cell::from(Span::styled(format!("Ok, stored {beats:#x}"), look.good)),
        count(beats),
        count(0),
        count(0),
    ]));
    let widths = [17, 25 + (area.width - SMALLEST_WIDTH).min(10), 8, 8, 7, 8, if area.width < WIDE { 0 } else { 8 }];
    let block = Block::bordered().title(" what each access gets, and how long it takes ");
    let table = Table::new(rows, widths.map(Constraint::Length)).header(Row::new(head).style(look.dim)).block(block);
    frame.render_widget(table, area);
}

/// One character for each part of a mapping: the share of it that is in the page tables.
fn draw_tables(
    frame: &mut Frame<'_>,
    area: Rect,
    scene: &Scene,
    pages: &[Option<PageMap>],
    height: usize,
    look: &Look,
) {
    let width = usize::from(area.width) - 2 - NAME;
    let mut lines = Vec::new();
    for (actor, pages) in scene.actors.iter().zip(pages) {
        let name = |row: usize| Span::raw(format!("{:<NAME$}", if row == 0 { actor.role.name() } else { "" }));
        let Some(shares) = pages.as_ref().and_then(|pages| pages.present(width * height).ok()) else {
            lines.push(Line::from(vec![name(0), Span::styled("/proc/PID/pagemap cannot be read", look.dim)]));
            lines.extend((1..height).map(|_| Line::default()));
            continue;
        };
        // Under AllOnes the pages of a disabled mapping are not the device's.
        let mine = scene.region.is_enabled() || actor.role.policy() != revocable_mmio::OnDisabled::AllOnes;
        let glyph = |share: &f64| match *share {
            s if s <= 0.0 => '·',
            _ if !mine => '1',
            s if s < 0.5 => '░',
            s if s < 1.0 => '▒',
            _ => '█',
        };
        let style = if mine { look.good } else { look.bad };
        for (row, part) in shares.chunks(shares.len().div_ceil(height)).enumerate() {
            lines.push(Line::from(vec![name(row), Span::styled(String::from_iter(part.iter().map(glyph)), style)]));
        }
    }
    let block = Block::bordered().title(" page tables: █ mapped  · not mapped  1 pages of ones, not the device's ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, scene: &Scene, caption: &Caption) {
    let room = usize::from(area.height).saturating_sub(2);
    let skip = caption.log.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = caption.log.iter().skip(skip).map(|line| Line::from(line.as_str())).collect();
    let median = |took: &Spread| took.quantile(0.5).map_or_else(|| "-".to_owned(), figures::duration);
    let (disable, enable) = (median(&scene.disables), median(&scene.enables));
    let title = format!(" what the owner did; medians: disable() {disable}, enable() {enable} ");
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}
