"""The reader of pages finds what is wrong with one."""

import pytest
from accessible import find_faults

PAGE = (
    '<html lang="en"><head><meta name="viewport" content="w"><title>t</title></head><body><main><h1>a</h1><h2>b</h2>'
    '<img alt="" src="x"><svg aria-label="a"><path/></svg><svg aria-hidden="true"></svg><a href="#">text</a>'
    '<label>x <input id="i"></label><table><tr><th scope="row">a</th></tr></table><pre tabindex="0"></pre>'
    '<div class="wide" role="region" aria-label="r" tabindex="0"></div></main></body></html>'
)


def test_a_page_without_faults_has_none():
    assert find_faults(PAGE) == []


@pytest.mark.parametrize(
    ("sound", "broken", "fault"),
    [
        (' lang="en"', "", "no language"),
        ('name="viewport"', "", "no viewport"),
        ("<title>t</title>", "", "title: 0 of them"),
        ("<h2>b</h2>", "<h1>b</h1>", "h1: 2 of them"),
        ("<h2>b</h2>", "<h3>b</h3>", "h3 after h1"),
        (' alt=""', "", "no alt"),
        (' aria-label="a"', "", "svg: no name"),
        (">text</a>", "> </a>", "a: no name"),
        ("<label>x <input", "<label></label><input", "no label"),
        (' scope="row"', "", "no scope"),
        ('<pre tabindex="0">', "<pre>", "no focus where it scrolls"),
        (' aria-label="r"', "", "a region without a name"),
        ('<input id="i">', '<input id="i"><input id="i">', "id i twice"),
    ],
)
def test_each_fault_is_found(sound, broken, fault):
    assert PAGE.count(sound) == 1
    (found,) = find_faults(PAGE.replace(sound, broken))
    assert fault in found
