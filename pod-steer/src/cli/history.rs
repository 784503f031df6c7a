//! `pod-steer history`

use unicode_width::UnicodeWidthStr;

use super::{
    Outcome as Ended,
    args::rollout::{HistoryArgs, HistoryFormat},
    block_on, print,
    table::{self, Cell},
    terminal, words,
};
use crate::{
    api::client,
    rollout::{Operation, Outcome},
};

/// Minimum width of the order's column.
const WHAT_COLUMNS_MIN: usize = 20;

pub(super) fn history(args: &HistoryArgs) -> Ended {
    let query = args.service.as_ref().map(|service| format!("?service={}", client::encoded(service)));
    let path = format!("/v1/history{}", query.unwrap_or_default());
    let operations: Vec<Operation> = block_on(async { Ok(client::get(&args.socket.socket, &path).await?) })?;
    match args.output {
        HistoryFormat::Json => print(&format!("{}\n", serde_json::to_string_pretty(&operations)?)),
        HistoryFormat::Table => {
            let colours = terminal::colours(&std::io::stdout());
            print(&render(&operations, args.service.is_some(), colours, terminal::columns()))
        }
    }
}

/// Renders two lines for each operation: a row of the table, and the message below it.
fn render(operations: &[Operation], of_one: bool, colours: bool, columns: Option<usize>) -> String {
    if operations.is_empty() {
        return "no orders yet; see `pod-steer deploy --help`\n".to_owned();
    }
    let mut head = vec!["ID", "TIME (UTC)", "SERVICE", "OPERATOR", "OUTCOME"];
    head.retain(|name| !of_one || *name != "SERVICE");
    let rows = || operations.iter().map(|operation| row(operation, of_one));
    let others = table::render(&head, &rows().collect::<Vec<_>>(), false, columns);
    let others = others.lines().map(UnicodeWidthStr::width).max().unwrap_or_default();
    let what_columns = columns.map_or(usize::MAX, |all| all.saturating_sub(others + 2).max(WHAT_COLUMNS_MIN));
    head.push("ORDER");
    let what = |operation: &Operation| Cell::text(table::shortened(&words::order(&operation.order), what_columns));
    let rows = rows().zip(operations).map(|(mut row, operation)| {
        row.push(what(operation));
        row
    });
    let table = table::render(&head, &rows.collect::<Vec<_>>(), colours, columns);
    let mut lines = table.lines();
    let mut text = format!("{}\n", lines.next().unwrap_or_default());
    for (line, operation) in lines.zip(operations) {
        text.push_str(line);
        text.push('\n');
        if let Some(end) = &operation.end {
            text.push_str(&table::wrapped("    ", &end.message, columns.unwrap_or(usize::MAX)));
        }
        if let Some(reason) = &operation.not_stored {
            let warning = format!("not stored: {reason}");
            text.push_str(&table::wrapped("    ", &warning, columns.unwrap_or(usize::MAX)));
        }
    }
    text
}

fn row(operation: &Operation, of_one: bool) -> Vec<Cell> {
    let when = jiff::Timestamp::from_millisecond(operation.begun_ms).unwrap_or_default();
    let (outcome, colour) = match operation.end.as_ref().map(|end| end.outcome) {
        None => ("running", "33"),
        Some(outcome @ Outcome::Done) => (words::outcome(outcome), "32"),
        Some(outcome @ (Outcome::Left | Outcome::Aborted)) => (words::outcome(outcome), "33"),
        Some(outcome @ (Outcome::Failed | Outcome::WentBack)) => (words::outcome(outcome), "1;31"),
    };
    let mut cells = vec![
        Cell::number(operation.id),
        Cell::text(when.strftime("%Y-%m-%d %H:%M").to_string()),
        Cell::name(words::name(&operation.who)),
        Cell::text(outcome).coloured(colour),
    ];
    if !of_one {
        cells.insert(2, Cell::name(&operation.service));
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{CanaryOrder, End, Order, Phase, Traffic};

    #[test]
    fn it_fits_80_columns() {
        let canary = CanaryOrder {
            version: "v2".into(),
            steps: vec![100, 500, 10_000],
            every_ms: 120_000,
            timeout_ms: 1,
            judge: Default::default(),
        };
        let message = "v2 gets everything after 4 steps in 8m; 412 connections of v1 were drained, none was left, and \
                       its backends were stopped";
        let operation = Operation {
            id: 17,
            service: "a-service-with-a-long-name".into(),
            who: "a-user-with-a-long-name (uid 1000, pid 4242)".into(),
            begun_ms: 1_700_000_000_000,
            order: Order::Canary(canary),
            before: Traffic::default(),
            undrained: Default::default(),
            recreation: None,
            phase: Phase::Ended,
            steps: Vec::new(),
            end: Some(End { outcome: Outcome::WentBack, at_ms: 0, message: message.into() }),
            not_stored: None,
        };
        let running = Operation { id: 18, end: None, order: Order::Pause(Default::default()), ..operation.clone() };
        let both = [operation, running];
        for of_one in [true, false] {
            let text = render(&both, of_one, false, Some(80));
            assert!(text.lines().all(|line| line.width() <= 80), "{text}");
            let whole = render(&both, of_one, false, None);
            assert!(whole.contains("a-user-with-a-long-name") && whole.contains(message), "{whole}");
        }
        let text = render(&both, true, false, Some(80));
        assert!(
            text.contains("2023-11-14 22:13") && text.contains("rolled back") && text.contains("running"),
            "{text}"
        );
        assert!(text.contains("canary v2"), "{text}");
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(render(&[], false, false, None).contains("no orders"));
    }
}
