"""The Result section: volume and mean HU of each segment, the Show 3D button, and export to files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from dcaseg.errors import UserError
from dcaseg.rendering.report import write_report
from DCASegmentationLib.event_loop import SegmentationObserver, StepRunner
from DCASegmentationLib.scene.case_record import CaseNodes, read_case_nodes
from DCASegmentationLib.scene.case_report import create_case_report
from DCASegmentationLib.scene.segment_statistics import SegmentStatistics, as_text, measure_segments
from DCASegmentationLib.scene.segmentation import require_voxels
from DCASegmentationLib.scene.storage import sanitize_file_name, save_segmentation, save_table
from DCASegmentationLib.scene.surfaces import compute_surfaces_in_steps, has_surfaces, write_surfaces
from DCASegmentationLib.scene.view_setup import jump_to_segment
from DCASegmentationLib.widgets.html import formatError
from DCASegmentationLib.widgets.tables import createNumberItem, makeCompact, setRows


def startFolder() -> str:
    """The folder in which file dialogs open: that of the scene, or Slicer's own if the scene has none.

    Otherwise they would open in the working directory, often the folder of the program, where users cannot write.
    """
    folder = Path(slicer.mrmlScene.GetRootDirectory() or "")
    # Slicer sets "." if the folder of the scene does not exist.
    return str(folder if folder.is_absolute() and folder.is_dir() else slicer.app.defaultScenePath)


def askForFile(parent: qt.QWidget, title: str, name: str, suffix: str, fileFilter: str) -> tuple[Path, bool] | None:
    """Ask the user where to save a file.

    Returns the path, completed to end in ``suffix``, and whether a file there may be overwritten; None if the user
    cancels. ``name`` (without suffix) is the suggested file name, in which characters that a file name cannot have are
    replaced; ``fileFilter`` describes the files, such as "CSV (*.csv)".
    """
    suggested = str(Path(startFolder()) / (sanitize_file_name(name) + suffix))
    chosen = qt.QFileDialog.getSaveFileName(parent, title, suggested, fileFilter)
    if not chosen:
        return None
    path = Path(chosen)
    # The dialog asked about overwriting the name as typed, not the name completed here.
    isAsTyped = path.name.endswith(suffix)
    return (path if isAsTyped else path.with_name(path.name + suffix)), isAsTyped


_WANTED = "DCASegmentation/Show3D"


class Show3D:
    """The behavior of the Show 3D button: computes the surfaces one segment at a time.

    Slicer's own button computes all surfaces at once and blocks the window for about a second. ``button`` must be
    checkable; ``onShown()`` is called when the surfaces have appeared.
    """

    def __init__(self, button: qt.QPushButton, onShown: Callable[[], None]) -> None:
        self._button, self._onShown = button, onShown
        self._segmentation: Any = None
        self._steps = StepRunner()
        button.connect("clicked(bool)", self._onClicked)
        self.setSegmentation(None)

    def setSegmentation(self, segmentation: Any | None) -> None:
        """Let the button control this vtkMRMLSegmentationNode, or none."""
        if segmentation is not self._segmentation:
            self._steps.stop()
        self._segmentation = segmentation
        self.update()

    def update(self) -> None:
        """Set the button to match what is shown."""
        self._button.enabled = self._segmentation is not None
        self._button.checked = self._isShown()

    def showIfWanted(self) -> None:
        """A run has ended: show its organs in 3D unless the user turned that off."""
        if self._segmentation is not None and _isWanted():
            self._show()

    def stop(self) -> None:
        """Stop computing surfaces."""
        self._steps.stop()

    def _isShown(self) -> bool:
        segmentation = self._segmentation
        return segmentation is not None and (self._steps.isRunning or has_surfaces(segmentation))

    def _show(self) -> None:
        self._steps.run(compute_surfaces_in_steps(self._segmentation), self._onMade)
        self.update()

    def _onMade(self) -> None:
        self.update()
        if self._isShown():
            self._onShown()

    def _onClicked(self, checked: bool) -> None:
        # Also applies to the next run.
        slicer.app.settings().setValue(_WANTED, checked)
        if self._segmentation is None:
            return
        if checked:
            self._show()
        else:
            self._steps.stop()
            self._segmentation.RemoveClosedSurfaceRepresentation()
        self.update()


def centerThreeDView() -> None:
    """Center the first 3D view on what it shows."""
    layouts = slicer.app.layoutManager()
    # There is no layout manager without a main window, and not every layout has a 3D view.
    if layouts is None or not layouts.threeDViewCount:
        return
    view = layouts.threeDWidget(0).threeDView()
    view.resetFocalPoint()
    view.resetCamera(True, True, True)


def _isWanted() -> bool:
    return bool(slicer.util.toBool(slicer.app.settings().value(_WANTED, True)))


# In Slicer's core since 5.12; the QuantitativeReporting extension provides it under the same name in earlier versions.
_DICOM_PLUGIN = "DICOMSegmentationPlugin"


def canExportDICOM() -> bool:
    """Whether this Slicer can write DICOM SEG."""
    return hasattr(slicer, "qSlicerDICOMExportDialog") and _DICOM_PLUGIN in getattr(slicer.modules, "dicomPlugins", {})


def findDICOMExportProblem(ct: Any | None) -> str:
    """Why a segmentation of this CT cannot be exported as DICOM SEG; empty if it can."""
    if ct is None:
        return _("DICOM SEG refers to the CT's images, but the CT is no longer in the scene.")
    # Slicer's DICOM reader sets this attribute on the volumes it loads.
    if not ct.GetAttribute("DICOM.instanceUIDs"):
        return _("DICOM SEG refers to the CT's images, but this CT was not loaded from DICOM.")
    return ""


def openDICOMDialog(segmentation: Any) -> None:
    """Open Slicer's export dialog for this segmentation; it shows and checks the DICOM tags."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    dialog = slicer.qSlicerDICOMExportDialog(None)
    dialog.setMRMLScene(slicer.mrmlScene)
    dialog.execDialog(hierarchy.GetItemByDataNode(segmentation))


_SWATCH = 12  # pixels


class ResultPanel(VTKObservationMixin):
    """The widgets of the Result section; its table is updated when the segmentation is edited.

    ``layout`` is the Qt layout that the panel is added to.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path) -> None:
        VTKObservationMixin.__init__(self)
        self._segmentation: Any = None
        self._rows: list[SegmentStatistics] = []
        # Why the organs cannot be measured; empty if they can.
        self._problem = ""
        self._watch = SegmentationObserver(self.update)
        self.widget = slicer.util.loadUI(str(uiFolder / "Result.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        makeCompact(self.ui.segmentsTable)
        self.ui.segmentsTable.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)
        self.ui.segmentsTable.connect("cellActivated(int,int)", self._onActivated)
        self.ui.copyButton.connect("clicked()", self.onCopy)
        self.ui.saveTableButton.connect("clicked()", self.onSaveTable)
        self.ui.saveSegmentationButton.connect("clicked()", self.onSaveSegmentation)
        self.ui.saveSurfacesButton.connect("clicked()", self.onSaveSurfaces)
        self.ui.exportDICOMButton.connect("clicked()", self.onExportDICOM)
        self.ui.reportButton.connect("clicked()", self.onSaveReport)
        self.setResult(None)

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Show this result; None if there is none."""
        self._segmentation = nodes.segmentation if nodes is not None else None
        self.removeObservers()
        self._watch.watch(self._segmentation)
        display = self._segmentation.GetDisplayNode() if nodes is not None else None
        if display is not None:
            self.addObserver(display, vtk.vtkCommand.ModifiedEvent, self._onDisplayModified)
        for widget in (self.ui.segmentsTable, self.ui.saveSegmentationButton, self.ui.saveSurfacesButton,
                       self.ui.copyButton, self.ui.saveTableButton, self.ui.reportButton):  # fmt: skip
            widget.visible = nodes is not None
        unavailableReason = findDICOMExportProblem(nodes.ct if nodes is not None else None)
        self.ui.exportDICOMButton.visible = nodes is not None and canExportDICOM()
        self.ui.exportDICOMButton.enabled = not unavailableReason
        self.ui.exportDICOMButton.toolTip = unavailableReason or _(
            "Save the segmentation as a DICOM SEG series of this study"
        )
        self.ui.resultHintLabel.visible = nodes is None
        self._showMessage("")
        self.update()

    def update(self) -> None:
        """Measure the segments again and fill the table."""
        self._rows = []
        # Looked up each time because the user can delete the CT at any time.
        nodes = read_case_nodes(self._segmentation)
        problem = ""
        try:
            if nodes is not None:
                require_voxels(nodes.segmentation)
                if nodes.ct is not None:
                    self._rows = measure_segments(nodes.segmentation, nodes.ct)
                else:
                    problem = _("The CT is no longer in the scene, so the organs cannot be measured.")
        except UserError as error:
            problem = formatError(error)
        if problem or self._problem:
            self._showMessage(problem)
        self._problem = problem
        self._fillTable()
        self.ui.copyButton.enabled = self.ui.saveTableButton.enabled = bool(self._rows)

    def enter(self) -> None:
        """Nothing to do: the table stays up to date while the module is closed."""

    def exit(self) -> None:
        """Nothing to do, see :meth:`enter`."""

    def cleanup(self) -> None:
        """Stop following the segmentation."""
        self.removeObservers()
        self._watch.watch(None)

    def onCopy(self) -> None:
        """Copy the table to the clipboard, separated by tabs."""
        slicer.app.clipboard().setText(as_text(self._rows, delimiter="\t"))
        self._showMessage(_("The table was copied."))

    def onSaveTable(self) -> None:
        """Ask for a file and save the table as CSV."""
        self._save(
            _("Save table"),
            ".csv",
            "CSV (*.csv)",
            lambda path, overwrite: save_table(as_text(self._rows), path, overwrite),
        )

    def onSaveSegmentation(self) -> None:
        """Ask for a file and save the segmentation as .seg.nrrd."""
        self._save(
            _("Save segmentation"), ".seg.nrrd", "Segmentation (*.seg.nrrd)",
            lambda path, overwrite: save_segmentation(self._segmentation, path, overwrite),
        )  # fmt: skip

    def onSaveSurfaces(self) -> None:
        """Ask for a folder and save one STL file per visible segment."""
        folder = qt.QFileDialog.getExistingDirectory(
            self.widget, _("Save one STL file per visible organ"), startFolder()
        )
        if folder:
            self._attempt(
                lambda: write_surfaces(self._segmentation, Path(folder), self._onProgress),
                _("The surfaces were saved in {folder}.").format(folder=folder),
            )

    def onSaveReport(self) -> None:
        """Ask for a file and save the report as HTML."""
        self._save(_("Save report"), ".html", "HTML (*.html)", self._writeReport)

    def _writeReport(self, path: Path, mayOverwrite: bool) -> None:
        nodes = read_case_nodes(self._segmentation)
        if nodes is None:
            raise UserError(_("The result is no longer in the scene."), _("Segment the CT again."))
        require_voxels(nodes.segmentation)
        write_report(create_case_report(nodes, time.strftime("%Y-%m-%d %H:%M")), path, mayOverwrite)

    def onExportDICOM(self) -> None:
        """Open Slicer's DICOM export dialog for the segmentation."""
        openDICOMDialog(self._segmentation)

    def _save(self, title: str, suffix: str, fileFilter: str, write: Callable[[Path, bool], None]) -> None:
        chosen = askForFile(self.widget, title, self._segmentation.GetName(), suffix, fileFilter)
        if chosen is not None:
            path, mayOverwrite = chosen
            self._attempt(lambda: write(path, mayOverwrite), _("Saved as {path}.").format(path=path))

    def _attempt(self, action: Callable[[], Any], success: str) -> None:
        try:
            with slicer.util.WaitCursor():
                action()
        except UserError as error:
            self._showMessage(formatError(error))
        else:
            self._showMessage(success)

    def _onProgress(self, fraction: float, message: str) -> None:
        self._showMessage(message)
        # Repaint now, because writing blocks the event loop.
        self.ui.resultMessageLabel.repaint()

    def _showMessage(self, message: str) -> None:
        self.ui.resultMessageLabel.text = message
        self.ui.resultMessageLabel.visible = bool(message)

    def _fillTable(self) -> None:
        table = self.ui.segmentsTable
        wasBlocked = table.blockSignals(True)
        setRows(table, len(self._rows))
        for row, statistics in enumerate(self._rows):
            name = qt.QTableWidgetItem(statistics.name)
            name.setData(qt.Qt.UserRole, statistics.segment_id)
            name.setIcon(qt.QIcon(self._createSwatch(statistics.segment_id)))
            hu = "\N{EN DASH}" if statistics.mean_hu is None else f"{statistics.mean_hu:.0f}"
            for column, item in enumerate((name, createNumberItem(statistics.shown_ml), createNumberItem(hu))):
                item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                if statistics.note:
                    item.setToolTip(_("{organ}: volume {note}").format(organ=statistics.name, note=statistics.note))
                table.setItem(row, column, item)
        table.blockSignals(wasBlocked)
        self._showVisibility()

    def _createSwatch(self, segmentId: str) -> qt.QPixmap:
        red, green, blue = self._segmentation.GetSegmentation().GetSegment(segmentId).GetColor()
        pixmap = qt.QPixmap(_SWATCH, _SWATCH)
        pixmap.fill(qt.QColor.fromRgbF(red, green, blue))
        return pixmap

    def _showVisibility(self) -> None:
        table = self.ui.segmentsTable
        wasBlocked = table.blockSignals(True)
        for row in range(table.rowCount):
            item = table.item(row, 0)
            isVisible = self._segmentation.GetDisplayNode().GetSegmentVisibility(item.data(qt.Qt.UserRole))
            item.setCheckState(qt.Qt.Checked if isVisible else qt.Qt.Unchecked)
        table.blockSignals(wasBlocked)

    def _onDisplayModified(self, caller: Any, event: str) -> None:
        self._showVisibility()

    def _onItemChanged(self, item: qt.QTableWidgetItem) -> None:
        if item.column() == 0 and self._segmentation is not None:
            isVisible = item.checkState() == qt.Qt.Checked
            self._segmentation.GetDisplayNode().SetSegmentVisibility(item.data(qt.Qt.UserRole), isVisible)

    def _onActivated(self, row: int, column: int) -> None:
        jump_to_segment(self._segmentation, self.ui.segmentsTable.item(row, 0).data(qt.Qt.UserRole))
