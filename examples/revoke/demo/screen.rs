//! The demonstration as a live picture.

use super::cast::{Actor, Role};
use super::pagemap::PageMap;
use super::scene::Scene;
use super::script::{Act, SCRIPT};
use crate::figures;
use crate::output::Failed;
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
const SMALLEST_WIDTH: u16 = 72;
/// With less the times are left out, so that the log has its last line.
const LOWEST_TIMES: u16 = 5;

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
    let pages: Vec<_> = scene.actors.iter().map(|actor| actor.page_map(&scene.region).ok()).collect();
    let mut next = Instant::now();
    while !asked_to_end.load(Ordering::Relaxed) && !director.is_finished() {
        if Instant::now() >= next {
            terminal.draw(|frame| picture(frame, scene, &lock(caption), &pages, &look))?;
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
struct Look {
    good: Style,
    bad: Style,
    wait: Style,
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

fn picture(frame: &mut Frame<'_>, scene: &Scene, caption: &Caption, pages: &[Option<PageMap>], look: &Look) {
    let area = frame.area();
    let rows = u16::try_from(scene.actors.len()).unwrap_or(5);
    let (w, h) = (SMALLEST_WIDTH, 2 * rows + 14);
    if area.width < w || area.height < h {
        let text = format!("{}x{} is too small: {w}x{h}, please (q ends)", area.width, area.height);
        frame.render_widget(Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true }), area);
        return;
    }
    let [state, met, tables, low, keys] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(rows + 4),
        Constraint::Length(rows + 2),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    let times = if low.height < LOWEST_TIMES { 0 } else { 34 };
    let [times, log] = Layout::horizontal([Constraint::Length(times), Constraint::Min(20)]).areas(low);
    draw_state(frame, state, scene, caption, look);
    draw_met(frame, met, scene, look);
    draw_tables(frame, tables, scene, pages, look);
    draw_times(frame, times, scene);
    draw_log(frame, log, caption);
    let help = " q quit   space revoke or restore by hand   r reset";
    frame.render_widget(Paragraph::new(help).style(look.dim), keys);
}

fn draw_state(frame: &mut Frame<'_>, area: Rect, scene: &Scene, caption: &Caption, look: &Look) {
    // Another process does not wait.
    let busy = scene.actors.iter().filter(|a| a.role != Role::Peer).all(|a| a.waiting().is_some());
    let (word, style) = match (busy, scene.region.is_enabled()) {
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
    let right = |n: u64| Cell::from(Line::from(figures::count(n)).right_aligned());
    let head = ["access", "gets now", "reached", "refused", "waited"];
    let head = head
        .into_iter()
        .enumerate()
        .map(|(i, name)| Cell::from(if i < 2 { Line::from(name) } else { Line::from(name).right_aligned() }));
    let mut rows: Vec<Row<'_>> = Vec::new();
    for actor in &scene.actors {
        let counts = actor.counts();
        rows.push(Row::new(vec![
            Cell::from(actor.role.name()),
            Cell::from(Span::styled(Scene::gets(actor), look.of(actor))),
            right(counts.reached),
            right(counts.refused),
            right(counts.waited),
        ]));
    }
    let beats = scene.heartbeats.load(Ordering::Relaxed);
    rows.push(Row::new(vec![
        Cell::from("owner's view"),
        Cell::from(Span::styled(format!("Ok, stored {beats:#x}"), look.good)),
        right(beats),
        right(0),
        right(0),
    ]));
    let widths = [
        Constraint::Length(18),
        Constraint::Min(26),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let block = Block::bordered().title(" what each access gets ");
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(look.dim)).block(block), area);
}

/// One character for each part of a mapping: the share of it that is in the page tables.
fn draw_tables(frame: &mut Frame<'_>, area: Rect, scene: &Scene, pages: &[Option<PageMap>], look: &Look) {
    let cells = usize::from(area.width).saturating_sub(2 + 19).min(64);
    let mut lines = Vec::new();
    for (actor, pages) in scene.actors.iter().zip(pages) {
        let mut line = vec![Span::raw(format!("{:<19}", actor.role.name()))];
        match pages.as_ref().and_then(|pages| pages.present(cells).ok()) {
            None => line.push(Span::styled("/proc/PID/pagemap cannot be read", look.dim)),
            Some(shares) => {
                // Under AllOnes the pages of a disabled mapping are not the device's.
                let mine = scene.region.is_enabled() || actor.role.policy() != revocable_mmio::OnDisabled::AllOnes;
                let glyph = |share: f64| match share {
                    s if s <= 0.0 => '·',
                    _ if !mine => '1',
                    s if s < 0.5 => '░',
                    s if s < 1.0 => '▒',
                    _ => '█',
                };
                let style = if mine { look.good } else { look.bad };
                line.push(Span::styled(shares.into_iter().map(glyph).collect::<String>(), style));
            }
        }
        lines.push(Line::from(line));
    }
    let block = Block::bordered().title(" page tables: █ mapped  · not mapped  1 pages of ones, not the device's ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_times(frame: &mut Frame<'_>, area: Rect, scene: &Scene) {
    let stats = scene.region.stats();
    let mut rows = vec![Line::from(format!("{:<14}{:>8} {:>8}", "", "p50 <", "p99 <"))];
    let mut row = |name: &str, latency: revocable_mmio::Latency| {
        let below = |share| latency.quantile(share).map_or_else(|| "-".to_owned(), figures::duration);
        rows.push(Line::from(format!("{name:<14}{:>8} {:>8}", below(0.5), below(0.99))));
    };
    row("disable()", stats.disable);
    row("enable()", stats.enable);
    for actor in &scene.actors {
        row(&actor.role.name().replace(", ", " ").replace("raw *ptr", "*ptr"), actor.latency());
    }
    frame.render_widget(Paragraph::new(rows).block(Block::bordered().title(" how long it takes ")), area);
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, caption: &Caption) {
    let room = usize::from(area.height).saturating_sub(2);
    let skip = caption.log.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = caption.log.iter().skip(skip).map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" what the owner did ")), area);
}
