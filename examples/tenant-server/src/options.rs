//! The command line.

use std::fmt;

use clap::Parser;
use memcg::Limit;

/// Most databases that can be asked for.
const MAX_DATABASES: i64 = 1 << 20;

/// Most threads that can be asked for.
const MAX_THREADS: i64 = 1024;

/// The total where none is given.
const TOTAL_MAX: &str = "1GiB";

/// A tenant's limit where none is given; less if the total is less.
const DEFAULT_MAX: u64 = 64 << 20;

/// A cache that speaks the Redis protocol, whose databases are tenants: each has its own limit on memory, which holds for all
/// that its requests allocate, and gets an error reply when it is full while everybody else goes on.
///
/// SIZE is a number of bytes, with K, M, G or T (powers of 1024, B and iB may follow), or max.
#[derive(Debug, Parser)]
#[command(name = "tenant-server", version, disable_help_subcommand = true)]
struct Cli {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,

    /// Port to listen on; 0 takes any free one
    #[arg(long, default_value_t = 6379)]
    port: u16,

    /// How many databases there are
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=MAX_DATABASES))]
    databases: u32,

    /// Password that clients have to give
    #[arg(long, value_name = "PASSWORD")]
    requirepass: Option<String>,

    /// Limit of the tenant of database N; may be given for each
    #[arg(long = "tenant", value_name = "N=SIZE", value_parser = parse_tenant)]
    tenants: Vec<(u32, Limit)>,

    /// Limit of every other tenant [default: 64MiB, or the total if that is less]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    default_max: Option<Limit>,

    /// Limit of all tenants together
    #[arg(long, value_name = "SIZE", default_value = TOTAL_MAX, value_parser = parse_size)]
    total_max: Limit,

    /// Threads that serve clients [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
}

/// What was asked for, checked.
#[derive(Debug)]
pub(crate) struct Options {
    /// Where to listen.
    pub(crate) bind: String,
    /// On which port; 0 for any.
    pub(crate) port: u16,
    /// How many databases.
    pub(crate) databases: u32,
    /// The password, if clients need one.
    pub(crate) password: Option<String>,
    /// Limits of single tenants.
    pub(crate) tenants: Vec<(u32, Limit)>,
    /// The limit of the others.
    pub(crate) default_max: Limit,
    /// The limit of all.
    pub(crate) total_max: Limit,
    /// How many threads.
    pub(crate) threads: usize,
}

/// How the command line ends the program.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It asked for help or the version: a text for stdout.
    Help(String),
    /// It was wrong: one line for stderr.
    Wrong(String),
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    ///
    /// [`Stop`], when there is nothing to run.
    pub(crate) fn of(words: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, Stop> {
        let cli = Cli::try_parse_from(words).map_err(stop)?;
        cli.checked().map_err(Stop::Wrong)
    }
}

impl Cli {
    fn checked(self) -> Result<Options, String> {
        let databases = self.databases;
        for (index, max) in &self.tenants {
            if *index >= databases {
                return Err(format!(
                    "--tenant {index}={max}: there are only {databases} databases, from 0"
                ));
            }
            if exceeds(*max, self.total_max) {
                return Err(format!(
                    "--tenant {index}={max} is more than --total-max {}",
                    self.total_max
                ));
            }
        }
        let mut seen: Vec<u32> = self.tenants.iter().map(|(index, _)| *index).collect();
        seen.sort_unstable();
        if let Some(twice) = seen.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("--tenant {}=... is given twice", twice[0]));
        }
        let default_max = self.default_max.unwrap_or(match self.total_max {
            Limit::Bytes(total) if total < DEFAULT_MAX => Limit::Bytes(total),
            _ => Limit::Bytes(DEFAULT_MAX),
        });
        if exceeds(default_max, self.total_max) {
            return Err(format!(
                "--default-max {default_max} is more than --total-max {}",
                self.total_max
            ));
        }
        let threads = self.threads.map_or_else(processors, usize::from);
        Ok(Options {
            bind: self.bind,
            port: self.port,
            databases,
            password: self.requirepass,
            tenants: self.tenants,
            default_max,
            total_max: self.total_max,
            threads,
        })
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether a tenant's limit can never be reached because the total's comes first. No limit of its own is not that.
pub(crate) fn exceeds(max: Limit, total: Limit) -> bool {
    match (max, total) {
        (Limit::Bytes(max), Limit::Bytes(total)) => max > total,
        _ => false,
    }
}

/// Reads a limit: a size that is not 0, or `max`.
fn parse_size(text: &str) -> Result<Limit, String> {
    match text.parse::<Limit>().map_err(|error| error.to_string())? {
        Limit::Bytes(0) => Err("0 leaves room for nothing; max stands for no limit".into()),
        limit => Ok(limit),
    }
}

fn parse_tenant(text: &str) -> Result<(u32, Limit), String> {
    let (index, size) = text.split_once('=').ok_or("expected N=SIZE, for instance 7=64M")?;
    let index = index.parse().map_err(|_| format!("'{index}' is not the number of a database"))?;
    Ok((index, parse_size(size)?))
}

fn stop(error: clap::Error) -> Stop {
    if !error.use_stderr() {
        return Stop::Help(error.to_string());
    }
    let text = error.to_string();
    // clap's first paragraph says what is wrong; hints and usage follow.
    let paragraph: Vec<&str> =
        text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let line = paragraph.join(" ");
    Stop::Wrong(line.strip_prefix("error: ").unwrap_or(&line).to_owned())
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Help(text) => f.write_str(text),
            Self::Wrong(line) => write!(f, "tenant-server: {line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options, String> {
        let words = std::iter::once("tenant-server").chain(words.iter().copied());
        Options::of(words.map(Into::into)).map_err(|stop| stop.to_string())
    }

    #[test]
    fn the_defaults_are_sensible() {
        let options = options(&[]).expect("nothing is wrong");
        assert_eq!(
            (options.bind.as_str(), options.port, options.databases),
            ("127.0.0.1", 6379, 1024)
        );
        assert_eq!(options.total_max, Limit::Bytes(1 << 30));
        assert_eq!(options.default_max, Limit::Bytes(64 << 20));
        assert!(options.threads > 0 && options.password.is_none());
    }

    #[test]
    fn sizes_and_tenants() {
        let words = [
            "--tenant",
            "1=64mb",
            "--tenant",
            "2=1GiB",
            "--default-max",
            "512K",
            "--total-max",
            "max",
        ];
        let options = options(&words).expect("nothing is wrong");
        assert_eq!(options.tenants, [(1, Limit::Bytes(64 << 20)), (2, Limit::Bytes(1 << 30))]);
        assert_eq!((options.default_max, options.total_max), (Limit::Bytes(512 << 10), Limit::Max));
    }

    #[test]
    fn a_small_total_bounds_the_default() {
        let options = options(&["--total-max", "1M"]).expect("nothing is wrong");
        assert_eq!(options.default_max, Limit::Bytes(1 << 20));
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let cases: [(&[&str], &str); 11] = [
            (&["--total-max", "12Q"], "--total-max"),
            (&["--tenant", "1=2G"], "--tenant 1=2"),
            (&["--tenant", "1"], "N=SIZE"),
            (&["--tenant", "x=1M"], "'x'"),
            (&["--tenant", "9=1M", "--databases", "4"], "only 4 databases"),
            (&["--tenant", "1=1M", "--tenant", "1=2M"], "twice"),
            (&["--default-max", "2G"], "--default-max"),
            (&["--databases", "0"], "--databases"),
            (&["--default-max", "0"], "--default-max"),
            (&["--threads", "0"], "--threads"),
            (&["--nonsense"], "--nonsense"),
        ];
        for (words, part) in cases {
            let line = options(words).expect_err("something is wrong");
            assert!(
                line.starts_with("tenant-server: ") && line.contains(part),
                "{words:?}: {line}"
            );
            assert_eq!(line.lines().count(), 1, "{words:?}: {line}");
        }
    }
}
