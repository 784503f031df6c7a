//! Describes a failure of an engine's health check in one line. The output comes from a container and may contain anything.

/// Characters of the output that are shown from its beginning and from its end.
const BEGINNING_CHARS: usize = 60;
const END_CHARS: usize = 140;

/// Describes the last result of a check.
pub(super) fn describe(exit_code: i64, output: &str) -> String {
    let output = one_line(output);
    let said = if output.is_empty() { "without output".to_owned() } else { format!("with output: {output}") };
    // Docker and Podman report -1 for a check that timed out.
    let ended = if exit_code == -1 { "timed out".to_owned() } else { format!("exited with code {exit_code}") };
    format!("the container's HEALTHCHECK {ended} {said}")
}

/// Makes one line without control characters. A long text keeps its beginning and its end, where the reason usually is.
fn one_line(output: &str) -> String {
    let spaced: String = output.chars().map(|c| if is_shown(c) { c } else { ' ' }).collect();
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let line: Vec<char> = words.join(" ").chars().collect();
    if line.len() <= BEGINNING_CHARS + END_CHARS {
        return line.into_iter().collect();
    }
    let text = |chars: &[char]| chars.iter().collect::<String>().trim().to_owned();
    format!("{} … {}", text(&line[..BEGINNING_CHARS]), text(&line[line.len() - END_CHARS..]))
}

/// Neither a control character nor one that changes the direction or the place of others (Unicode's bidirectional and
/// invisible format characters).
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_line() {
        let prefix = "the container's HEALTHCHECK";
        let curl = "  % Total\r\n  0     0\ncurl: (22) The requested URL returned error: 500\n";
        assert_eq!(
            describe(22, curl),
            format!(
                "{prefix} exited with code 22 with output: % Total 0 0 curl: (22) The requested URL returned error: 500"
            )
        );
        assert_eq!(describe(1, " \n"), format!("{prefix} exited with code 1 without output"));
        let late = "Health check exceeded timeout (3s)";
        assert_eq!(describe(-1, late), format!("{prefix} timed out with output: {late}"));
        assert_eq!(describe(1, "\x1b[31mno\u{202e}\0"), format!("{prefix} exited with code 1 with output: [31mno"));
    }

    #[test]
    fn a_long_one_is_cut_in_its_middle() {
        let long = format!("first {} last", "ä".repeat(5000));
        let shown = one_line(&long);
        assert_eq!(shown.chars().count(), BEGINNING_CHARS + END_CHARS + 3);
        assert!(shown.starts_with("first ") && shown.ends_with(" last"), "{shown}");
    }
}
