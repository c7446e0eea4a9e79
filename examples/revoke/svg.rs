//! SVG documents of text and paths. The benches use this file too.
//!
//! Written by hand: the drawings need ridges and logarithmic axes, of which plotting crates have neither.

use std::fmt::{Display, Write};

/// A drawing with a white background, for light and dark pages alike.
pub(crate) struct Svg(String);

/// The point of a text that is at its `x`.
#[derive(Clone, Copy)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub(crate) fn new(width: usize, height: usize, title: &str) -> Self {
        let mut svg = Self(String::new());
        svg.add(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"system-ui, 'DejaVu Sans', Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#1f2933\">"
        ));
        svg.add(format_args!("<title>{}</title>", escaped(title)));
        svg.add(format_args!("<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"));
        svg
    }

    /// `style` is a list of further attributes.
    pub(crate) fn text(&mut self, x: f64, y: f64, anchor: Anchor, style: &str, what: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let what = escaped(what);
        self.add(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {style}>{what}</text>"));
    }

    /// `path` is an SVG path, and `style` a list of further attributes.
    pub(crate) fn path(&mut self, path: impl Display, style: &str) {
        self.add(format_args!("<path d=\"{path}\" {style}/>"));
    }

    /// A straight line.
    pub(crate) fn line(&mut self, from: (f64, f64), to: (f64, f64), style: &str) {
        self.path(format_args!("M{:.1} {:.1}L{:.1} {:.1}", from.0, from.1, to.0, to.1), style);
    }

    /// The whole document.
    pub(crate) fn end(mut self) -> String {
        self.add(format_args!("</svg>"));
        self.0
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{element}").expect("a String takes any text");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
