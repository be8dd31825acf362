use super::*;
use std::num::NonZeroU16;
use vt100::{Color, Parser};

const RED: [u8; 3] = [255, 0, 0];
const BLUE: [u8; 3] = [0, 0, 255];
/// Rows and columns.
const TERMINAL: (u16, u16) = (24, 80);

/// The upper half of a picture, and its lower.
fn picture(upper: [u8; 3], lower: [u8; 3]) -> Picture {
    let pixels = [upper.repeat(8), lower.repeat(8)].concat();
    Picture::new(4, 4, &pixels).unwrap()
}

fn parser() -> Parser {
    let [rows, columns] = [TERMINAL.0, TERMINAL.1].map(|size| NonZeroU16::new(size).unwrap());
    Parser::new(rows, columns, 0)
}

/// The rows of the terminal that begin with a block, from the top, and the colours of its two halves.
fn blocks(parser: &Parser) -> Vec<(u16, Color, Color)> {
    let begins = |row| {
        let cell = parser.screen().cell(row, 0)?;
        (cell.contents() == "\u{2580}").then(|| (row, cell.fgcolor(), cell.bgcolor()))
    };
    (0..TERMINAL.0).filter_map(begins).collect()
}

fn colour([r, g, b]: [u8; 3]) -> Color {
    Color::Rgb(r, g, b)
}

#[test]
fn each_protocol_has_its_bytes() {
    let two = Picture::new(2, 2, &[[255, 0, 0, 0, 255, 0], [0, 0, 255, 9, 9, 9]].concat()).unwrap();
    let cells = Cells { rows: 1, columns: 2 };
    assert_eq!(
        two.kitty(cells, 7),
        "\x1b_Ga=T,q=2,f=24,s=2,v=2,i=7,p=1,c=2,r=1,C=1,m=0;/wAAAP8AAAD/CQkJ\x1b\\"
    );
    assert_eq!(
        two.blocks(cells),
        "\x1b[38;2;255;0;0;48;2;0;0;255m\u{2580}\x1b[38;2;0;255;0;48;2;9;9;9m\u{2580}\x1b[0m\r\n"
    );
    let iterm = two.iterm(cells);
    let (head, file) = iterm.split_once(':').unwrap();
    let file = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        file.strip_suffix('\x07').unwrap(),
    );
    let file = file.unwrap();
    let size = file.len();
    let wanted = "\x1b]1337;File=inline=1;size=SIZE;width=2;height=1;preserveAspectRatio=0";
    assert_eq!(head, wanted.replace("SIZE", &size.to_string()));
    let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    assert_eq!(pixels, [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]);
}

/// Of alike neighbours only the first says its colours.
#[test]
fn blocks_say_a_colour_once() {
    let drawn = picture(RED, BLUE).blocks(Cells { rows: 1, columns: 4 });
    assert_eq!(drawn.matches("38;2").count(), 1);
    assert_eq!(drawn.matches('\u{2580}').count(), 4);
}

/// Kitty takes at most 4096 characters at a time.
#[test]
fn a_large_picture_is_sent_to_kitty_in_chunks() {
    let pixels: Vec<u8> = (0..64 * 64 * 3).map(|value: u32| (value % 251) as u8).collect();
    let sent = Picture::new(64, 64, &pixels).unwrap().kitty(Cells { rows: 4, columns: 8 }, 7);
    let commands: Vec<&str> = sent.split_terminator("\x1b\\").collect();
    assert_eq!(commands.len(), 4);
    let mut all = String::new();
    for (index, command) in commands.iter().enumerate() {
        let (keys, chunk) = command.strip_prefix("\x1b_G").unwrap().split_once(';').unwrap();
        assert!(chunk.len() <= 4096);
        assert!(keys.ends_with(if index == 3 { "m=0" } else { "m=1" }), "{keys}");
        assert_eq!(keys.contains("a=T"), index == 0);
        all += chunk;
    }
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, all);
    assert_eq!(decoded.unwrap(), pixels);
}

#[test]
fn pictures_keep_their_shape_and_leave_room_in_any_terminal() {
    let fit = |width, height, terminal| {
        let pixels = vec![0; usize::try_from(width * height * 3).unwrap()];
        let cells = Picture::new(width, height, &pixels).unwrap().fit(terminal);
        cells.map(|cells| (cells.rows, cells.columns))
    };
    assert_eq!(fit(32, 32, (24, 80)), Some((16, 32)));
    assert_eq!(fit(1024, 1024, (50, 200)), Some((16, 32)));
    assert_eq!(fit(64, 32, (24, 80)), Some((16, 64)));
    assert_eq!(fit(32, 64, (24, 80)), Some((16, 16)));
    assert_eq!(fit(128, 16, (24, 40)), Some((3, 39)));
    assert_eq!(fit(32, 32, (10, 80)), Some((6, 12)));
    assert_eq!(fit(32, 32, (24, 11)), Some((5, 10)));
    for (terminal, width) in [((6, 80), 32), ((0, 0), 32), ((24, 1), 32), ((24, 80), 4000)] {
        assert_eq!(fit(width, 32, terminal), None, "{width} in {terminal:?}");
    }
}

#[test]
fn a_picture_that_is_none_is_none() {
    for (width, height, bytes) in [(0, 1, 0), (1, 0, 0), (2, 2, 11), (u32::MAX, u32::MAX, 3)] {
        assert_eq!(Picture::new(width, height, &vec![0; bytes]), None);
    }
    let large = Picture::new(1024, 512, &vec![9; 1024 * 512 * 3]).unwrap();
    assert_eq!(large, Picture::new(256, 128, &vec![9; 256 * 128 * 3]).unwrap());
}

#[test]
fn a_picture_is_drawn_in_the_place_of_the_one_before() {
    let mut parser = parser();
    // At the foot of the screen, where there is no room yet.
    parser.process("line\r\n".repeat(30).as_bytes());
    let mut screen = Screen::new(Protocol::Blocks, 7);
    for upper in [RED, BLUE, RED] {
        parser.process(screen.draw(&picture(upper, BLUE), Some(TERMINAL)).as_bytes());
        let drawn = blocks(&parser);
        assert_eq!(drawn.len(), 16, "{}", parser.screen().contents());
        assert_eq!(drawn[0], (7, colour(upper), colour(upper)));
        assert_eq!(drawn[15], (22, colour(BLUE), colour(BLUE)));
        assert_eq!(parser.screen().cursor_position(), (23, 0));
    }
}

#[test]
fn lines_are_printed_above_the_picture() {
    let mut parser = parser();
    let mut screen = Screen::new(Protocol::Blocks, 7);
    parser.process(screen.draw(&picture(RED, BLUE), Some(TERMINAL)).as_bytes());
    for line in ["one", "two\nthree"] {
        parser.process(screen.above(line, Some(TERMINAL)).as_bytes());
    }
    let rows: Vec<String> = parser.screen().rows(0, 80).collect();
    assert_eq!(rows[..3], ["one", "two", "three"]);
    assert_eq!(blocks(&parser).len(), 16);
    assert_eq!(blocks(&parser)[0].0, 3);
    assert_eq!(parser.screen().cursor_position(), (19, 0));
}

/// What was drawn for another size is left where it is: nobody knows where that is now.
#[test]
fn a_terminal_that_changes_its_size_gets_a_picture_of_its_own() {
    let mut screen = Screen::new(Protocol::Blocks, 7);
    let (large, small) = ((24, 80), (12, 30));
    let first = screen.draw(&picture(RED, BLUE), Some(large));
    assert!(first.starts_with(&"\n".repeat(16)));
    assert!(!screen.draw(&picture(RED, BLUE), Some(large)).contains("\n\n"));
    assert!(screen.draw(&picture(RED, BLUE), Some(small)).starts_with(&"\n".repeat(8)));
    assert_eq!(screen.above("line", Some(large)), "line\r\n");
    for none in [None, Some((4, 80))] {
        assert_eq!(screen.draw(&picture(RED, BLUE), none), "");
    }
    assert!(screen.draw(&picture(RED, BLUE), Some(large)).starts_with('\n'));
}

#[test]
fn kittys_picture_moves_with_its_rows() {
    let mut screen = Screen::new(Protocol::Kitty, 7);
    let drawn = screen.draw(&picture(RED, BLUE), Some(TERMINAL));
    assert!(drawn.starts_with(&"\n".repeat(16)));
    assert!(drawn.contains("\r\x1b7\x1b[16A\x1b_Ga=T,") && drawn.ends_with("\x1b\\\x1b8"));
    let moved = screen.above("line", Some(TERMINAL));
    assert!(
        moved.starts_with("\x1b_Ga=d,d=I,i=7,q=2\x1b\\\x1b[16A\r\x1b[Jline\r\n\n"),
        "{moved:?}"
    );
}
