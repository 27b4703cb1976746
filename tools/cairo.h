// The functions of the cairo library that pictures need, found at run time.
//
// Thread safety: load() may be called from any thread; the functions are as
// safe as cairo says.
#ifndef SPINDLE_TOOLS_CAIRO_H_
#define SPINDLE_TOOLS_CAIRO_H_

#include <cairo/cairo-svg.h>
#include <cairo/cairo.h>

#include "absl/status/statusor.h"

namespace spindle {

struct Cairo {
  // Errors: kUnavailable if the library, or a function of it, is not there.
  static absl::StatusOr<const Cairo*> load();

  decltype(&::cairo_status_to_string) status_to_string = nullptr;

  decltype(&::cairo_image_surface_create) image_surface_create = nullptr;
  decltype(&::cairo_svg_surface_create_for_stream)
      svg_surface_create_for_stream = nullptr;
  decltype(&::cairo_svg_surface_set_document_unit)
      svg_surface_set_document_unit = nullptr;
  decltype(&::cairo_surface_write_to_png_stream) surface_write_to_png_stream =
      nullptr;
  decltype(&::cairo_surface_finish) surface_finish = nullptr;
  decltype(&::cairo_surface_status) surface_status = nullptr;
  decltype(&::cairo_surface_destroy) surface_destroy = nullptr;

  decltype(&::cairo_create) create = nullptr;
  decltype(&::cairo_status) status = nullptr;
  decltype(&::cairo_destroy) destroy = nullptr;

  decltype(&::cairo_set_antialias) set_antialias = nullptr;
  decltype(&::cairo_set_source_rgb) set_source_rgb = nullptr;
  decltype(&::cairo_set_line_width) set_line_width = nullptr;
  decltype(&::cairo_paint) paint = nullptr;
  decltype(&::cairo_rectangle) rectangle = nullptr;
  decltype(&::cairo_fill) fill = nullptr;
  decltype(&::cairo_move_to) move_to = nullptr;
  decltype(&::cairo_line_to) line_to = nullptr;
  decltype(&::cairo_stroke) stroke = nullptr;

  decltype(&::cairo_select_font_face) select_font_face = nullptr;
  decltype(&::cairo_set_font_size) set_font_size = nullptr;
  decltype(&::cairo_text_extents) text_extents = nullptr;
  decltype(&::cairo_show_text) show_text = nullptr;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_CAIRO_H_
