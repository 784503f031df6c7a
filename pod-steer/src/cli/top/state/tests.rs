use super::{super::fixture, *};

fn press(view: &mut View, board: &Board, keys: &[KeyCode]) -> Action {
    keys.iter().fold(Action::Draw, |_, key| view.press(KeyEvent::new(*key, KeyModifiers::NONE), board))
}

fn typed(view: &mut View, board: &Board, text: &str) {
    for letter in text.chars() {
        press(view, board, &[KeyCode::Char(letter)]);
    }
}

fn names<'a>(view: &View, board: &'a Board) -> Vec<&'a str> {
    view.rows(board).into_iter().map(|row| row.name.as_str()).collect()
}

fn selected<'a>(view: &View, board: &'a Board) -> &'a str {
    let rows = view.rows(board);
    &rows[view.selected(&rows)].name
}

#[test]
fn pages_are_entered_and_left() {
    let (board, mut view) = (fixture::board(), View::new(Page::Services));
    assert_eq!(names(&view, &board), ["idle", "v1", "web", "v1", "v2"]);
    press(&mut view, &board, &[KeyCode::Down; 4]);
    assert_eq!(selected(&view, &board), "v2");
    press(&mut view, &board, &[KeyCode::Enter]);
    assert_eq!(*view.page(), Page::Service("web".to_owned()));
    assert_eq!(names(&view, &board), ["v1", "v1-1", "v1-2", "v2", "v2-1", "v2-2"]);
    assert_eq!(selected(&view, &board), "v2", "the version that was selected");
    press(&mut view, &board, &[KeyCode::Enter]);
    assert_eq!(*view.page(), Page::Service("web".to_owned()), "a version has no page");
    press(&mut view, &board, &[KeyCode::Down, KeyCode::Enter]);
    assert_eq!(*view.page(), Page::Backend("web".to_owned(), "id-v2-1".to_owned()));
    press(&mut view, &board, &[KeyCode::Char('?'), KeyCode::Char('?')]);
    assert_eq!(*view.page(), Page::Help);
    press(&mut view, &board, &[KeyCode::Esc, KeyCode::Esc, KeyCode::Left]);
    assert_eq!((view.page(), selected(&view, &board)), (&Page::Services, "v2"));
    press(&mut view, &board, &[KeyCode::Esc; 3]);
    assert_eq!(*view.page(), Page::Services, "the first page stays");
}

#[test]
fn a_selected_row_stays_selected_when_it_moves() {
    let (board, mut view) = (fixture::board(), View::new(Page::Services));
    press(&mut view, &board, &[KeyCode::Down, KeyCode::Down]);
    assert_eq!(selected(&view, &board), "web");
    press(&mut view, &board, &[KeyCode::Char('s')]);
    assert_eq!((view.sort, names(&view, &board)), (Column::Rate, vec!["web", "v1", "v2", "idle", "v1"]));
    assert_eq!(selected(&view, &board), "web");
    press(&mut view, &board, &[KeyCode::Char('r')]);
    assert_eq!(names(&view, &board), ["idle", "v1", "web", "v2", "v1"], "reversed, at each level");
    press(&mut view, &board, &[KeyCode::Char('<'), KeyCode::Char('r'), KeyCode::End]);
    assert_eq!((view.sort, selected(&view, &board)), (Column::Name, "v2"));
    // It is gone: the last row is as near as possible.
    let mut fewer = fixture::board();
    fewer.services.pop();
    assert_eq!(selected(&view, &fewer), "v1");
    fewer.services.clear();
    let rows = view.rows(&fewer);
    assert_eq!((rows.len(), view.selected(&rows)), (0, 0));
    press(&mut view, &fewer, &[KeyCode::Up, KeyCode::Enter, KeyCode::PageDown, KeyCode::Home]);
}

#[test]
fn every_column_sorts() {
    let (board, mut view) = (fixture::board(), View::new(Page::Everything));
    for column in Column::ALL {
        assert_eq!(view.sort, column);
        assert_eq!(view.rows(&board).len(), 10);
        press(&mut view, &board, &[KeyCode::Char('>')]);
    }
    let first = |sort| {
        let view = View { sort, ..View::new(Page::Service("web".to_owned())) };
        names(&view, &board)[0].to_owned()
    };
    assert_eq!(
        (first(Column::Conditions), first(Column::Got), first(Column::State)),
        ("v2".into(), "v1".into(), "v2".into())
    );
}

#[test]
fn a_filter_is_typed_and_removed() {
    let (board, mut view) = (fixture::board(), View::new(Page::Services));
    typed(&mut view, &board, "/V2-q");
    assert!(view.typing && names(&view, &board).is_empty(), "q is a letter of it");
    press(&mut view, &board, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!((view.filter.as_str(), names(&view, &board)), ("V2-", vec!["web", "v2"]), "a backend's name counts");
    typed(&mut view, &board, "/");
    press(&mut view, &board, &[KeyCode::Esc]);
    assert_eq!((view.typing, view.rows(&board).len()), (false, 5));
    typed(&mut view, &board, "/idle");
    press(&mut view, &board, &[KeyCode::Enter]);
    assert_eq!(names(&view, &board), ["idle", "v1"], "a service with its versions");
    press(&mut view, &board, &[KeyCode::Esc]);
    assert_eq!(view.rows(&board).len(), 5);
    let mut one = View::new(Page::Service("web".to_owned()));
    typed(&mut one, &board, "/v1-2");
    assert_eq!(names(&one, &board), ["v1", "v1-2"], "a backend below its version");
}

#[test]
fn some_keys_are_for_the_loop() {
    let (board, mut view) = (fixture::board(), View::new(Page::Services));
    let mut control = |letter| view.press(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL), &board);
    assert_eq!([control('c'), control('z'), control('l')], [Action::Quit, Action::Suspend, Action::Redraw]);
    typed(&mut view, &board, "/x");
    let end = view.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &board);
    assert_eq!(end, Action::Quit, "also while a filter is typed");
    press(&mut view, &board, &[KeyCode::Esc, KeyCode::Char('p')]);
    assert!(view.paused);
    press(&mut view, &board, &[KeyCode::Char(' ')]);
    assert!(!view.paused);
    assert_eq!(press(&mut view, &board, &[KeyCode::Char('q')]), Action::Quit);
}

#[test]
fn a_text_is_scrolled_to_its_end() {
    let (board, mut view) = (fixture::board(), View::new(Page::Help));
    press(&mut view, &board, &[KeyCode::End]);
    assert_eq!(view.scroll(7), 7);
    press(&mut view, &board, &[KeyCode::Up]);
    assert_eq!(view.scroll(7), 6);
    press(&mut view, &board, &[KeyCode::Home]);
    assert_eq!(view.scroll(7), 0);
}
