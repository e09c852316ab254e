//! What `/proc` says.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The kernel's unit of processor time in `/proc`, on every architecture of Linux.
const TICKS_A_SECOND: u64 = 100;

/// How much processor time a process has used; `None` when it is not to be seen.
pub fn time_used(process: u32) -> Option<Duration> {
    parse_time(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

fn parse_time(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses, with whatever characters; 14 and 15 are wanted.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_A_SECOND))
}

/// This process's memory in KiB: what it has now, and the most it ever had.
pub fn memory() -> Option<(u64, u64)> {
    parse_memory(&fs::read_to_string("/proc/self/status").ok()?)
}

fn parse_memory(status: &str) -> Option<(u64, u64)> {
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((of("VmRSS:")?, of("VmHWM:")?))
}

/// The processor's name.
pub fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Raises the limit of open files to what is allowed: thousands of connections. Says what it is now.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_behind_any_name() {
        let stat =
            "23969 (my) sqld) S 23947 23969 23969 0 -1 4194560 157145 54050 4 28 2879 782 104 29 20 0 48";
        assert_eq!(parse_time(stat), Some(Duration::from_millis(36_610)));
        assert_eq!(parse_time("1 (x"), None);
        assert!(time_used(std::process::id()).is_some());
    }

    #[test]
    fn memory_is_now_and_at_most() {
        assert_eq!(parse_memory("VmHWM:\t    1200 kB\nVmRSS:\t    1000 kB\n"), Some((1000, 1200)));
        assert_eq!(parse_memory("VmHWM:\t x kB\n"), None);
        let (now, most) = memory().unwrap();
        assert!(now > 0 && most >= now / 2, "{now} {most}");
    }
}
